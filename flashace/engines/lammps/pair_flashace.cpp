// SPDX-License-Identifier: GPL-2.0-only
// Compiled against the headers of LAMMPS, which is distributed under version 2 of the GNU General Public License; so is this file.
//
// pair_style flashace: LAMMPS's atoms and full neighbour list in; energies, forces and virials of a model out, which a library made by
// `flashace export` computes (model.h). The energy of an atom depends on the neighbours within r_max and on nothing else, so centres are the
// atoms that this process owns, and neighbours its own atoms or ghosts; what falls on ghosts goes home with LAMMPS's reverse communication.

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "fix.h"
#include "force.h"
#include "group.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"

#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <limits>
#include <numeric>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

using namespace LAMMPS_NS;

namespace {

struct Borders : Comm {    // `comm_modify group` is told to nobody else
  static int group(Comm *comm) { return comm->*(&Borders::bordergroup); }
};

struct Element {
  const char *symbol;
  double mass;    // g/mol
};

// clang-format off
constexpr Element ELEMENTS[] = {
  {"H", 1.008}, {"He", 4.003}, {"Li", 6.94}, {"Be", 9.012}, {"B", 10.81}, {"C", 12.011}, {"N", 14.007}, {"O", 15.999}, {"F", 18.998},
  {"Ne", 20.18}, {"Na", 22.99}, {"Mg", 24.305}, {"Al", 26.982}, {"Si", 28.085}, {"P", 30.974}, {"S", 32.06}, {"Cl", 35.45},
  {"Ar", 39.948}, {"K", 39.098}, {"Ca", 40.078}, {"Sc", 44.956}, {"Ti", 47.867}, {"V", 50.941}, {"Cr", 51.996}, {"Mn", 54.938},
  {"Fe", 55.845}, {"Co", 58.933}, {"Ni", 58.693}, {"Cu", 63.546}, {"Zn", 65.38}, {"Ga", 69.723}, {"Ge", 72.63}, {"As", 74.922},
  {"Se", 78.971}, {"Br", 79.904}, {"Kr", 83.798}, {"Rb", 85.468}, {"Sr", 87.62}, {"Y", 88.906}, {"Zr", 91.224}, {"Nb", 92.906},
  {"Mo", 95.95}, {"Tc", 97.907}, {"Ru", 101.07}, {"Rh", 102.906}, {"Pd", 106.42}, {"Ag", 107.868}, {"Cd", 112.414}, {"In", 114.818},
  {"Sn", 118.71}, {"Sb", 121.76}, {"Te", 127.6}, {"I", 126.904}, {"Xe", 131.293}, {"Cs", 132.905}, {"Ba", 137.327}, {"La", 138.905},
  {"Ce", 140.116}, {"Pr", 140.908}, {"Nd", 144.242}, {"Pm", 144.913}, {"Sm", 150.36}, {"Eu", 151.964}, {"Gd", 157.25},
  {"Tb", 158.925}, {"Dy", 162.5}, {"Ho", 164.93}, {"Er", 167.259}, {"Tm", 168.934}, {"Yb", 173.054}, {"Lu", 174.967}, {"Hf", 178.49},
  {"Ta", 180.948}, {"W", 183.84}, {"Re", 186.207}, {"Os", 190.23}, {"Ir", 192.217}, {"Pt", 195.084}, {"Au", 196.967}, {"Hg", 200.592},
  {"Tl", 204.38}, {"Pb", 207.2}, {"Bi", 208.98}, {"Po", 208.982}, {"At", 209.987}, {"Rn", 222.018}, {"Fr", 223.02}, {"Ra", 226.025},
  {"Ac", 227.028}, {"Th", 232.038}, {"Pa", 231.036}, {"U", 238.029}, {"Np", 237.048}, {"Pu", 244.064}, {"Am", 243.061},
  {"Cm", 247.07}, {"Bk", 247.07}, {"Cf", 251.08}, {"Es", 252.083}, {"Fm", 257.095}, {"Md", 258.098}, {"No", 259.101}, {"Lr", 262.11},
  {"Rf", 267.122}, {"Db", 268.126}, {"Sg", 271.134}, {"Bh", 270.133}, {"Hs", 269.134}, {"Mt", 278.156}, {"Ds", 281.165},
  {"Rg", 281.166}, {"Cn", 285.177}, {"Nh", 286.182}, {"Fl", 289.19}, {"Mc", 289.194}, {"Lv", 293.204}, {"Ts", 293.208},
  {"Og", 294.214}};
// clang-format on

constexpr double CLEARLY_SHORTER = 0.95, UNLIKE = 3.0;    // as in guards.py
constexpr double SPARE = 0.2, SPARE_SHARE = 0.05, MADE_UP = 0.5;    // as in coordination.py
constexpr int BLOCK = 64;    // centres whose neighbours are in memory at a time
constexpr double NEVER = std::numeric_limits<double>::infinity();

class PairFlashACE : public Pair {
 public:
  PairFlashACE(LAMMPS *lmp);
  ~PairFlashACE() override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;
  double memory_usage() override;
  void judge();

 private:
  void load(const std::string &file);
  std::string open(const std::string &file);
  void compare_masses();
  int excluded_groups();
  bool is_hidden(int i, int groups);
  void select();
  void gather(int start, int n);
  void add(int start, int n);
  void watch(int start, int n);
  void tell();
  void share(std::string &text, int rank);
  void look_at_the_mean();
  bool is_due();
  void append();
  void try_file();
  double threshold(const std::string &name, const char *value);

  enum { DISTANCE, COORDINATION, UNFAMILIAR, UNCERTAINTY, NUM_NEWS };
  std::string news[NUM_NEWS];    // what training did not have, as found first by this process
  bool reported[NUM_NEWS] = {};    // in this run; the same on all processes
  std::vector<double> counted;     // neighbours of each element
  bool told = false;    // which type is which element
  void *library = nullptr;
  const FlashACEModel *model = nullptr;
  std::vector<int64_t> element_of_type;    // -1 for NULL
  std::vector<int> centres;                // local indices of the atoms whose energies this process computes

  // a block of centres, as evaluate.c wants it
  std::vector<int64_t> first, neighbour, species;
  std::vector<double> edge_vec, energies, g;
  std::vector<int> atoms;    // of each edge: the local index of the neighbour
  int64_t most = 1;          // neighbours of one centre
  char *room = nullptr;
  int64_t room_size = 0;

  // how uncertain forces are
  bool judged = false;    // after `uncertainty` in the input
  double warn = NEVER, stop = NEVER;    // eV/A
  std::string file;    // for configurations above them; none where empty
  int every = 100;    // steps between two of these
  bigint last_written = -1;
  std::string judge_id() { return "FLASHACE_JUDGE_" + std::to_string(instance_me); }
  int asked = 0, flag = 0;    // how often in each step (`extract_peratom`), and for the next evaluation (`extract`)
  std::vector<double> uncertain;    // [nmax] eV/A
  std::vector<double> features;     // memory for those of a block, whatever their precision
  int most_uncertain = 0;    // local index
  std::vector<double> sums;    // of all centres of this process, and their number
};

// Calls `judge` where an evaluation counts: fix gcmc and its like ask for energies of configurations that they only try.
class JudgeFix : public Fix {
 public:
  JudgeFix(LAMMPS *lmp, int narg, char **arg) : Fix(lmp, narg, arg) { nevery = 1; }
  int setmask() override { return FixConst::END_OF_STEP | FixConst::MIN_POST_FORCE; }
  void setup(int) override { pair->judge(); }
  void min_setup(int) override { pair->judge(); }
  void min_post_force(int) override { pair->judge(); }
  void end_of_step() override { pair->judge(); }
  PairFlashACE *pair = nullptr;
};

PairFlashACE::PairFlashACE(LAMMPS *lmp) : Pair(lmp)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;    // the sum over edges needs no ghosts, and is right under pair_style hybrid too
  centroidstressflag = CENTROID_AVAIL;
}

PairFlashACE::~PairFlashACE()
{
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
  std::free(room);
  if (library) dlclose(library);
  if (modify->get_fix_by_id(judge_id())) modify->delete_fix(judge_id());
}

void PairFlashACE::settings(int narg, char **arg)
{
  judged = narg > 0;
  warn = stop = NEVER;
  file.clear();
  every = 100;
  if (judged && strcmp(arg[0], "uncertainty") != 0)
    error->all(FLERR, "pair_style flashace: expected nothing after it, or uncertainty, got {}; the model goes into pair_coeff", arg[0]);
  for (int k = 1; k < narg; k += 2) {
    const std::string name = arg[k];
    if (name != "warn" && name != "stop" && name != "dump" && name != "every")
      error->all(FLERR, "pair_style flashace uncertainty: expected warn, stop, dump or every, got {}", name);
    if (k + 1 == narg) error->all(FLERR, "pair_style flashace uncertainty: expected a value after {}, got nothing", name);
    if (name == "dump") file = arg[k + 1];
    else if (name == "every") every = threshold(name, arg[k + 1]);
    else (name == "warn" ? warn : stop) = threshold(name, arg[k + 1]);
  }
  if (judged && warn == NEVER && stop == NEVER)
    error->all(FLERR, "pair_style flashace uncertainty: expected warn or stop, each with a number of eV/A, got neither; write for instance "
               "`pair_style flashace uncertainty warn 0.1 stop 1.0`");
}

// A number above zero from the input, or from 1 on for steps.
double PairFlashACE::threshold(const std::string &name, const char *value)
{
  const bool steps = name == "every";
  const double number = steps ? utils::inumeric(FLERR, value, false, lmp) : utils::numeric(FLERR, value, false, lmp);
  if (number <= 0)
    error->all(FLERR, "pair_style flashace uncertainty: expected {} after {}, got {}", steps ? "a number of steps" : "a number of eV/A above zero",
               name, value);
  return number;
}

void PairFlashACE::coeff(int narg, char **arg)
{
  const int ntypes = atom->ntypes;
  if (narg != 3 + ntypes)
    error->all(FLERR,
               "pair_coeff: expected * *, a file and {} elements, one for each type of atoms, got {} words; write for instance "
               "`pair_coeff * * model.so Si C`", ntypes, narg);
  if (!allocated) {
    memory->create(setflag, ntypes + 1, ntypes + 1, "pair:setflag");
    memory->create(cutsq, ntypes + 1, ntypes + 1, "pair:cutsq");
    map = new int[ntypes + 1];
    allocated = 1;
  }
  for (int t = 1; t <= ntypes; t++)
    if (!strcmp(arg[2 + t], "NULL") && !force->pair_match("^hybrid", 0))
      error->all(FLERR, "pair_coeff: expected an element for each type of atoms, got NULL for type {}; NULL is for pair_style hybrid", t);
  for (int i = 1; i <= ntypes; i++)    // as long as something may be wrong, nothing is set
    for (int j = 1; j <= ntypes; j++) setflag[i][j] = 0;
  load(arg[2]);
  element_of_type.assign(ntypes + 1, -1);
  for (int t = 1; t <= ntypes; t++) {
    if (!strcmp(arg[2 + t], "NULL")) continue;
    std::istringstream known(model->elements);
    std::string symbol;
    for (int64_t e = 0; known >> symbol; e++)
      if (symbol == arg[2 + t]) element_of_type[t] = e;
    if (element_of_type[t] < 0)
      error->all(FLERR, "pair_coeff: {} knows the elements {}, got {} for atom type {}; name one of them, or fit a model to it", arg[2],
                 model->elements, arg[2 + t], t);
  }
  map_element2type(narg - 3, arg + 3);
  told = false;
}

// Features of this processor in the words of `FlashACEModel::needs`; empty where Linux does not tell.
std::string processor_features()
{
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);)
    if (line.compare(0, 5, "flags") == 0) {
      line.erase(std::remove(line.begin(), line.end(), '_'), line.end());
      return line.substr(line.find(':') + 1) + " ";
    }
  return "";
}

// A file or a processor may be wrong on one machine of many: all processes stop, with what the first of those that fail has to say.
void PairFlashACE::load(const std::string &file)
{
  std::string problem = open(file);
  const int mine = problem.empty() ? comm->nprocs : comm->me;
  int first_failed;
  MPI_Allreduce(&mine, &first_failed, 1, MPI_INT, MPI_MIN, world);
  if (first_failed == comm->nprocs) return;
  share(problem, first_failed);
  error->all(FLERR, "pair_coeff: {}", problem);
}

// The text of one process, for all.
void PairFlashACE::share(std::string &text, int rank)
{
  int length = text.size();
  MPI_Bcast(&length, 1, MPI_INT, rank, world);
  text.resize(length);
  MPI_Bcast(&text[0], length, MPI_CHAR, rank, world);
}

// dlopen takes a name that is open already for the same file, also where another export stands there by now: so each has a name of its own.
static void *open_library(const std::string &file)
{
  char *place = realpath(file.c_str(), nullptr);
  const char *parent = std::getenv("TMPDIR");
  std::string folder = std::string(parent ? parent : "/tmp") + "/flashace-XXXXXX";
  std::string name = file.find('/') == std::string::npos ? "./" + file : file;
  const bool linked = place && mkdtemp(&folder[0]) && symlink(place, (folder + "/model.so").c_str()) == 0;
  if (linked) name = folder + "/model.so";
  std::free(place);
  void *library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (linked) unlink(name.c_str());
  rmdir(folder.c_str());
  return library;
}

// Whether a library lacks the checksum that ends an export: "FlashACE" and the CRC-32 of what stands before it, in eight hexadecimal digits.
// What is no library, or not there, is for dlopen to name.
static bool is_damaged(const std::string &file)
{
  struct stat about;
  if (stat(file.c_str(), &about) != 0 || !S_ISREG(about.st_mode)) return false;
  std::ifstream stream(file, std::ios::binary);
  const std::string data((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (data.compare(0, 4, "\177ELF") != 0) return false;
  if (data.size() < 16) return true;
  uint32_t crc = 0xffffffff, of_byte[256];
  for (uint32_t i = 0; i < 256; i++) {
    of_byte[i] = i;
    for (int bit = 0; bit < 8; bit++) of_byte[i] = of_byte[i] & 1 ? of_byte[i] >> 1 ^ 0xedb88320 : of_byte[i] >> 1;
  }
  for (size_t i = 0; i < data.size() - 16; i++) crc = crc >> 8 ^ of_byte[(crc ^ (unsigned char) data[i]) & 255];
  char expected[17];
  std::snprintf(expected, sizeof expected, "FlashACE%08x", ~crc);
  return data.compare(data.size() - 16, 16, expected) != 0;
}

// What is wrong with the file, if anything.
std::string PairFlashACE::open(const std::string &file)
{
  if (library) dlclose(library);
  library = nullptr;
  model = nullptr;
  if (is_damaged(file))
    return "expected a file that `flashace export model.pt --for lammps` has written, got " + file + ", which is damaged, or of an earlier "
        "version of FlashACE; export it again";
  library = open_library(file);
  const char *reason = library ? nullptr : dlerror();
  model = library ? (const FlashACEModel *) dlsym(library, "flashace_model") : nullptr;
  if (!model)
    return "expected a file that `flashace export model.pt --for lammps` has written, got " + file + (reason ? std::string(": ") + reason : "");
  if (model->abi != FLASHACE_ABI && model->abi != FLASHACE_ABI - 1)
    return "expected a model file for LAMMPS of version " + std::to_string(FLASHACE_ABI) + ", got " + file + " of version " +
        std::to_string(model->abi) + "; export it again, with the version of FlashACE that this pair style is from";
  const std::string features = processor_features();
  std::istringstream needs(model->needs);
  std::string lacking;
  for (std::string need; needs >> need;)
    if (features.find(" " + need + " ") == std::string::npos) lacking += " " + need;
  if (lacking.empty()) return "";
  return file + " was compiled for another kind of processor: this one has no" + lacking +
      "; export it on this machine, or with --march x86-64-v3 for any processor of the last ten years";
}

void PairFlashACE::init_style()
{
  if (strcmp(update->unit_style, "metal") != 0)
    error->all(FLERR, "pair_style flashace: expected units metal (eV and Angstrom), got {}; write `units metal`", update->unit_style);
  if (!force->newton_pair) error->all(FLERR, "pair_style flashace: expected newton on for pairs, got off; write `newton on`");
  int hidden = neighbor->nex_type || neighbor->nex_mol, anywhere;
  for (int i = 0; i < atom->nlocal; i++) hidden = hidden || is_hidden(i, excluded_groups());
  MPI_Allreduce(&hidden, &anywhere, 1, MPI_INT, MPI_MAX, world);
  if (anywhere)
    error->all(FLERR, "pair_style flashace: expected all neighbors within the cutoff, got neigh_modify exclude; leave it out");
  if (neighbor->includegroup || Borders::group(comm))
    error->all(FLERR, "pair_style flashace: expected all atoms as neighbors, got those of one group; leave out {}",
               neighbor->includegroup ? "neigh_modify include" : "comm_modify group");
  for (int k = 1; k <= 3 && atom->molecular != Atom::ATOMIC; k++)
    if (force->special_lj[k] != 1.0 || force->special_coul[k] != 1.0)
      error->all(FLERR, "pair_style flashace: expected bonded neighbors like all others, got special_bonds that leave them out; write "
                 "`special_bonds lj/coul 1 1 1`");
  compare_masses();
  try_file();
  if (judged && !modify->get_fix_by_id(judge_id())) ((JudgeFix *) modify->add_fix(judge_id() + " all flashace/judge"))->pair = this;
  for (int k = 0; k < NUM_NEWS; k++) {
    news[k].clear();
    reported[k] = false;
  }
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

// Says once which type is which element, and warns of masses that are those of others: then the elements are in the wrong order.
void PairFlashACE::compare_masses()
{
  if (told || comm->me) return;
  told = true;
  std::string line = "pair_style flashace:", warning;
  for (int t = 1; t <= atom->ntypes; t++) {
    if (map[t] < 0) continue;
    const std::string symbol = elements[map[t]];
    line += fmt::format("{} type {} is {}", line.back() == ':' ? "" : ",", t, symbol);
    const Element *own = std::find_if(std::begin(ELEMENTS), std::end(ELEMENTS), [&](const Element &e) { return symbol == e.symbol; });
    if (!atom->mass || !atom->mass_setflag[t] || own == std::end(ELEMENTS)) continue;
    line += fmt::format(" (mass {:g})", atom->mass[t]);
    const double lightest = symbol == "He" ? 3.016 : own->mass, heaviest = symbol == "H" ? 3.016 : own->mass;    // isotopes that people use
    if (atom->mass[t] < 0.8 * lightest || atom->mass[t] > 1.2 * heaviest)
      warning += fmt::format("{} a mass near {:g} for type {}, which pair_coeff says is {}, got {:g}", warning.empty() ? "" : ";", own->mass, t,
                             symbol, atom->mass[t]);
  }
  utils::logmesg(lmp, line + "\n");
  if (!warning.empty())
    error->warning(FLERR, "pair_style flashace: expected{}; give pair_coeff the elements in the order of the types, or correct mass", warning);
}

double PairFlashACE::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "pair_coeff: expected elements for the atom types {} and {}, got none", i, j);
  return model->r_max;
}

void PairFlashACE::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  const bool wanted = judged || asked || flag;
  if (wanted) {
    if (model->abi < FLASHACE_ABI || !model->feature_bytes)
      error->all(FLERR, "pair_style flashace: expected a model file with uncertainty, got one without ({}); "
                 "`flashace calibrate` adds it to the model, from the data of its fit, then export that again", model->origin);
    features.resize((BLOCK * model->feature_bytes + 7) / 8);
    uncertain.assign(std::max(atom->nmax, 1), 0.0);
    most_uncertain = 0;
    sums.assign(model->num_sums + 1, 0.0);
  }
  if (judged)
    for (auto &each : news) each.clear();    // what was found while a fix tried something counts for nothing
  select();
  const int total = centres.size();
  for (int start = 0; start < total; start += BLOCK) {
    const int n = std::min(BLOCK, total - start);
    gather(start, n);
    const int64_t size = (model->memory_for(most) + 63) / 64 * 64;
    if (size > room_size) {
      std::free(room);
      room = (char *) std::aligned_alloc(64, size);
      if (!room) error->one(FLERR, "pair_style flashace: expected {} bytes of memory, got none; use more processes", size);
      room_size = size;
    }
    g.resize(edge_vec.size());
    energies.resize(n);
    model->evaluate(model->weights, room, most, 0, n, first.data(), neighbour.data(), edge_vec.data(), species.data(), energies.data(),
                    g.data(), wanted ? features.data() : nullptr);
    if (wanted) {
      double found[BLOCK];
      model->uncertainty(n, first.data(), species.data(), features.data(), found, sums.data());
      sums.back() += n;
      for (int k = 0; k < n; k++) {
        const int i = centres[start + k];
        uncertain[i] = std::isfinite(found[k]) ? found[k] : std::numeric_limits<double>::max();
        if (uncertain[i] > uncertain[most_uncertain]) most_uncertain = i;
      }
    }
    add(start, n);
    watch(start, n);
  }
  if (eflag_global && !judged) tell();    // on all processes or on none
}

// Groups, as bits of a mask, that are kept from the neighbours of others: by `neigh_modify exclude`, or by a fix that deletes atoms on trial.
int PairFlashACE::excluded_groups()
{
  int groups = 0;
  for (int k = 0; k < neighbor->nex_group; k++) {
    const int pair = group->bitmask[neighbor->ex1_group[k]] | group->bitmask[neighbor->ex2_group[k]];
    groups |= pair == 1 ? 1 : pair & ~1;    // 1 is group all
  }
  return groups;
}

// Whether neighbours are missing of an atom that is there.
bool PairFlashACE::is_hidden(int i, int groups)
{
  return (atom->mask[i] & 1) && (atom->mask[i] & groups);
}

// The centres are the atoms that are there. A trial deletion (fix gcmc, fix charge/regulation) leaves the atom in its place, but takes it out
// of group all and so out of the neighbours of others: then it has no energy either.
void PairFlashACE::select()
{
  const int groups = excluded_groups();
  int known = 0;
  for (int i = 0; i < atom->nlocal; i++) known += element_of_type[atom->type[i]] >= 0;
  centres.clear();
  for (int ii = 0; ii < list->inum; ii++) {
    const int i = list->ilist[ii];
    if (element_of_type[atom->type[i]] < 0 || known != list->inum)
      error->one(FLERR, "pair_style flashace: expected the atoms that the neighbor list was made for, got others; no fix may turn a type that "
                 "is NULL here into another one, nor the other way round");
    if (is_hidden(i, groups))
      error->one(FLERR, "pair_style flashace: expected all neighbors within the cutoff, got atom {} in a group of neigh_modify exclude; leave "
                 "that out", atom->tag[i]);
    if (atom->mask[i] & 1) centres.push_back(i);
  }
}

// Neighbours closer than r_max, of centres start to start + n: the list has those within the skin too.
void PairFlashACE::gather(int start, int n)
{
  const double *const *const x = atom->x;
  const double r_max2 = model->r_max * model->r_max;
  // `neighbour` is an index to `species`, and nothing else is asked of a neighbour: so after the centres stand the elements, once each
  species.resize(n);
  for (int k = 0; k < n; k++) species[k] = element_of_type[atom->type[centres[start + k]]];
  const int64_t num_elements = *std::max_element(element_of_type.begin(), element_of_type.end()) + 1;
  for (int64_t e = 0; e < num_elements; e++) species.push_back(e);

  first.assign(1, 0);
  neighbour.clear();
  edge_vec.clear();
  atoms.clear();
  most = 1;
  for (int k = 0; k < n; k++) {
    const int i = centres[start + k];
    for (int jj = 0; jj < list->numneigh[i]; jj++) {
      const int j = list->firstneigh[i][jj] & NEIGHMASK;
      const double r[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
      if (r[0] * r[0] + r[1] * r[1] + r[2] * r[2] >= r_max2) continue;
      atoms.push_back(j);
      neighbour.push_back(n + element_of_type[atom->type[j]]);
      edge_vec.insert(edge_vec.end(), r, r + 3);
    }
    first.push_back(atoms.size());
    most = std::max(most, first[k + 1] - first[k]);
  }
}

// Energies, and the slopes g = dE_i/dr_ij along r_ij = x_j - x_i: the force -g acts on the neighbour and g on the centre.
void PairFlashACE::add(int start, int n)
{
  double **f = atom->f;
  for (int k = 0; k < n; k++) {
    const int i = centres[start + k];
    double total[3] = {0, 0, 0}, w[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0};    // xx yy zz xy xz yz yx zx zy, LAMMPS's order
    for (int64_t e = first[k]; e < first[k + 1]; e++) {
      const int j = atoms[e];
      const double *ge = &g[3 * e], *r = &edge_vec[3 * e];
      for (int c = 0; c < 3; c++) {
        total[c] += ge[c];
        f[j][c] -= ge[c];
      }
      if (!vflag_either && !cvflag_atom) continue;
      const double v[9] = {-r[0] * ge[0], -r[1] * ge[1], -r[2] * ge[2], -r[0] * ge[1], -r[0] * ge[2],
                           -r[1] * ge[2], -r[1] * ge[0], -r[2] * ge[0], -r[2] * ge[1]};
      for (int c = 0; c < 9; c++) w[c] += v[c];
      if (cvflag_atom)    // the force on j, times where it stands from the centre of the term: so does energy flow
        for (int c = 0; c < 9; c++) cvatom[j][c] += v[c];
    }
    if (!std::isfinite(energies[k] + total[0] + total[1] + total[2]))
      error->one(FLERR, "pair_style flashace: expected finite numbers, got NaN or infinity for atom {}; look for atoms on top of each "
                 "other, or a time step that is too long", atom->tag[i]);
    for (int c = 0; c < 3; c++) f[i][c] += total[c];
    if (eflag_global) eng_vdwl += energies[k];
    if (eflag_atom) eatom[i] += energies[k];
    for (int c = 0; c < 6; c++) {
      if (vflag_global) virial[c] += w[c];
      if (vflag_atom) vatom[i][c] += w[c];
    }
  }
}

// Notes the first pair of this process that is clearly closer than any in training, and the first atom with far fewer or far more neighbours.
void PairFlashACE::watch(int start, int n)
{
  const int64_t S = model->num_elements;
  const bool distances = model->shortest && !reported[DISTANCE] && news[DISTANCE].empty();
  const bool numbers = model->coordination && !reported[COORDINATION] && news[COORDINATION].empty();
  if (!distances && !numbers) return;
  const double p = model->envelope, a = (p + 1) * (p + 2) / 2, b = p * (p + 2), c = p * (p + 1) / 2;
  std::istringstream names(model->elements);
  const std::vector<std::string> symbols{std::istream_iterator<std::string>(names), {}};
  for (int k = 0; k < n; k++) {
    const int64_t own = species[k];
    counted.assign(S, 0.0);
    for (int64_t e = first[k]; e < first[k + 1]; e++) {
      const int64_t other = species[neighbour[e]];
      const double *v = &edge_vec[3 * e], r = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]), x = r / model->r_max;
      double power = 1.0;
      for (int64_t q = 0; q < model->envelope; q++) power *= x;
      counted[other] += 1.0 - power * (a - x * (b - x * c));
      if (distances && news[DISTANCE].empty() && r < CLEARLY_SHORTER * model->shortest[own * S + other])
        news[DISTANCE] = fmt::format("atoms {} ({}) and {} ({}) are {:.3f} A apart, and no such pair closer than {:.3f} A in training",
                                     atom->tag[centres[start + k]], symbols[own], atom->tag[atoms[e]], symbols[other], r,
                                     model->shortest[own * S + other]);
    }
    if (!numbers || first[k] == first[k + 1]) continue;
    const double *range = model->coordination + 2 * own * S;
    double moved = 0.0;    // of all elements, beyond the middle of their ranges
    for (int64_t other = 0; other < S; other++) moved += counted[other] - 0.5 * (range[2 * other] + range[2 * other + 1]);
    for (int64_t other = 0; news[COORDINATION].empty() && other < S; other++) {
      const double least = range[2 * other], most = range[2 * other + 1], of_this = counted[other] - 0.5 * (least + most);
      const double reordered = of_this * moved < MADE_UP * of_this * of_this ? most - least : 0.0;
      if (least - counted[other] > std::max({SPARE, SPARE_SHARE * least, reordered}) ||
          counted[other] - most > std::max({SPARE, SPARE_SHARE * most, reordered}))
        news[COORDINATION] = fmt::format("atom {} ({}) has {:.2f} neighbors {}, counted by the envelope, and {:.2f} to {:.2f} in training",
                                         atom->tag[centres[start + k]], symbols[own], counted[other], symbols[other], least, most);
    }
  }
}

// What one of the processes has noted is said once per run. Without `uncertainty` only where energies are asked for, so that most steps do
// without talk; with it at each step, since one may be the last.
void PairFlashACE::tell()
{
  struct {
    double value;
    int rank;
  } mine[NUM_NEWS], most[NUM_NEWS];
  if (!judged && reported[DISTANCE] && reported[COORDINATION]) return;
  if (judged) look_at_the_mean();
  for (int k = 0; k < NUM_NEWS; k++) mine[k] = {!news[k].empty() && !reported[k] ? 1.0 : 0.0, comm->me};
  mine[UNCERTAINTY].value = judged ? uncertain[most_uncertain] : 0.0;
  MPI_Allreduce(mine, most, NUM_NEWS, MPI_DOUBLE_INT, MPI_MAXLOC, world);
  const bool is_uncertain = most[UNCERTAINTY].value > std::min(warn, stop), too_uncertain = most[UNCERTAINTY].value > stop;
  int reason = too_uncertain ? UNCERTAINTY : NUM_NEWS;    // to stop
  for (const int k : {COORDINATION, UNFAMILIAR})
    if (reason == NUM_NEWS && most[k].value > 0 && stop < NEVER) reason = k;
  if (is_uncertain && comm->me == most[UNCERTAINTY].rank) {
    const int i = most_uncertain;
    news[UNCERTAINTY] = fmt::format("at step {} the force on atom {} ({}) is uncertain by {:.3g} eV/A, which is more than {:g}", update->ntimestep,
                                    atom->tag[i], elements[map[atom->type[i]]], uncertain[i], too_uncertain ? stop : warn);
  }
  for (int k = 0; k < NUM_NEWS; k++) {
    if ((k == UNCERTAINTY ? !is_uncertain : most[k].value == 0) || (reported[k] && k != reason)) continue;
    share(news[k], most[k].rank);
    reported[k] = true;
    if (comm->me == 0 && k != reason)
      error->warning(FLERR, "pair_style flashace: {}. Energies and forces are a guess here: look whether the atoms are meant to be like this, "
                     "or add such frames to the training data (said once per run)", news[k]);
  }
  const bool outside = most[DISTANCE].value + most[COORDINATION].value + most[UNFAMILIAR].value > 0;
  const bool written = judged && (is_uncertain || outside) && (reason < NUM_NEWS || is_due());
  if (written) append();
  if (reason < NUM_NEWS)
    error->all(FLERR, "pair_style flashace uncertainty stop: {}. The atoms are unlike those that the model was fitted to: {}", news[reason],
               file.empty() ? "label this configuration and add it to the data" : "label this configuration, the last in " + file +
               ", and add it to the data");
}

// Whether the structure is unlike the training as a whole, by its mean atom: the same on all processes.
void PairFlashACE::look_at_the_mean()
{
  if (model->largest_mean == 0 || reported[UNFAMILIAR]) return;
  MPI_Allreduce(MPI_IN_PLACE, sums.data(), sums.size(), MPI_DOUBLE, MPI_SUM, world);
  const double times = std::sqrt(std::inner_product(sums.begin(), sums.end() - 1, sums.begin(), 0.0)) / sums.back() / model->largest_mean;
  if (times > UNLIKE)
    news[UNFAMILIAR] = fmt::format("at step {} the structure is unlike the training as a whole: its mean atom is {:.1f} times as uncertain as in "
                                   "any frame of the calibration ({:g} times is far)", update->ntimestep, times, UNLIKE);
}

void PairFlashACE::judge()
{
  if (judged) tell();
}

// Whether it is time to write a configuration: one of every so many steps, also where the run began anew in between.
bool PairFlashACE::is_due()
{
  return last_written < 0 || update->ntimestep < last_written || update->ntimestep >= last_written + every;
}

// The atoms of all processes into `file`, in the order of their numbers, as extended XYZ.
void PairFlashACE::append()
{
  if (file.empty()) return;
  last_written = update->ntimestep;
  constexpr int COLUMNS = 6;
  std::vector<double> own, all;
  for (int i = 0; i < atom->nlocal; i++) {
    const double *x = atom->x[i];
    const double tag = atom->tag_enable ? atom->tag[i] : 0;
    own.insert(own.end(), {tag, (double) atom->type[i], x[0] - domain->boxlo[0], x[1] - domain->boxlo[1], x[2] - domain->boxlo[2], uncertain[i]});
  }
  std::vector<int> counts(comm->nprocs), starts(comm->nprocs);
  const int mine = own.size();
  MPI_Gather(&mine, 1, MPI_INT, counts.data(), 1, MPI_INT, 0, world);
  std::partial_sum(counts.begin(), counts.end() - 1, starts.begin() + 1);
  all.resize(starts.back() + counts.back());
  MPI_Gatherv(own.data(), mine, MPI_DOUBLE, all.data(), counts.data(), starts.data(), MPI_DOUBLE, 0, world);
  std::string problem;
  if (comm->me == 0) {
    std::vector<int> order(all.size() / COLUMNS);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return all[COLUMNS * a] < all[COLUMNS * b]; });
    std::string frame = fmt::format("{}\nLattice=\"{} 0.0 0.0 {} {} 0.0 {} {} {}\" Properties=species:S:1:pos:R:3:id:I:1:forces_uncertainty:R:1 "
                                    "pbc=\"{} {} {}\" step={}\n", order.size(), domain->xprd, domain->xy, domain->yprd, domain->xz, domain->yz,
                                    domain->zprd, "FT"[domain->xperiodic], "FT"[domain->yperiodic], "FT"[domain->zperiodic], update->ntimestep);
    for (int k : order) {
      const double *row = &all[COLUMNS * k];
      const int element = map[(int) row[1]];
      frame += fmt::format("{} {} {} {} {} {}\n", element < 0 ? "X" : elements[element], row[2], row[3], row[4], (tagint) row[0], row[5]);
    }
    FILE *stream = fopen(file.c_str(), "a");
    const bool whole = stream && fwrite(frame.data(), 1, frame.size(), stream) == frame.size();
    if (!stream || fclose(stream) != 0 || !whole) problem = utils::getsyserror();
  }
  share(problem, 0);
  if (!problem.empty()) error->all(FLERR, "pair_style flashace uncertainty: expected to write to {}, got: {}", file, problem);
}

// What cannot be written shall not be found out when it is needed.
void PairFlashACE::try_file()
{
  if (file.empty()) return;
  std::string problem;
  if (comm->me == 0) {
    const bool is_new = access(file.c_str(), F_OK) != 0;
    FILE *stream = fopen(file.c_str(), "a");
    if (!stream) problem = utils::getsyserror();
    else fclose(stream);
    if (stream && is_new) unlink(file.c_str());
  }
  share(problem, 0);
  if (!problem.empty()) error->all(FLERR, "pair_style flashace uncertainty dump: expected a file to write to, got {}: {}", file, problem);
}

// For fix pair: `uncertainty`, of each atom, in eV/A. Who reads it without having a flag needs it at each step.
void *PairFlashACE::extract_peratom(const char *name, int &columns)
{
  if (strcmp(name, "uncertainty") != 0) return nullptr;
  columns = 0;
  if (!flag) asked++;
  return uncertain.empty() ? nullptr : uncertain.data();
}

// For fix pair, which sets the flag before the evaluations that shall give the values; before that it has asked for them (`extract_peratom`).
void *PairFlashACE::extract(const char *name, int &dimension)
{
  if (strcmp(name, "uncertainty_flag") != 0) return nullptr;
  dimension = 0;
  asked--;
  return &flag;
}

double PairFlashACE::memory_usage()
{
  return Pair::memory_usage() + room_size + sizeof(double) * (edge_vec.capacity() + g.capacity() + uncertain.capacity() + features.capacity()) +
      (sizeof(int64_t) + sizeof(int)) * atoms.capacity();
}

}    // namespace

#if __has_include("lammpsplugin.h")
#include "lammpsplugin.h"
#else    // the headers that pip installs lack it
extern "C" {
typedef void *(lammpsplugin_factory1) (void *);
typedef void *(lammpsplugin_factory2) (void *, int, char **);
typedef struct {
  const char *version, *style, *name, *info, *author;
  union {
    lammpsplugin_factory1 *v1;
    lammpsplugin_factory2 *v2;
  } creator;
  void *handle;
} lammpsplugin_t;
typedef void (*lammpsplugin_regfunc)(lammpsplugin_t *, void *);
}
#endif

static Pair *create_pair(LAMMPS *lmp)
{
  return new PairFlashACE(lmp);
}

static Fix *create_fix(LAMMPS *lmp, int narg, char **arg)
{
  return new JudgeFix(lmp, narg, arg);
}

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *register_plugin)
{
  lammpsplugin_t plugin;
  plugin.version = ((LAMMPS *) lmp)->version;
  plugin.style = "pair";
  plugin.name = "flashace";
  plugin.info = "FlashACE: attention on the Atomic Cluster Expansion";
  plugin.author = "The FlashACE developers";
  plugin.creator.v1 = (lammpsplugin_factory1 *) &create_pair;
  plugin.handle = handle;
  ((lammpsplugin_regfunc) register_plugin)(&plugin, lmp);
  plugin.style = "fix";
  plugin.name = "flashace/judge";
  plugin.info = "What pair_style flashace makes for itself where uncertainty is asked for";
  plugin.creator.v2 = (lammpsplugin_factory2 *) &create_fix;
  ((lammpsplugin_regfunc) register_plugin)(&plugin, lmp);
}
