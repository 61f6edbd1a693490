// SPDX-License-Identifier: GPL-2.0-only
// Compiled against the headers of LAMMPS, which is distributed under version 2 of the GNU General Public License; so is this file.
//
// pair_style flashace: LAMMPS's atoms and full neighbour list in; energies, forces and virials of a model out, which a library made by
// `flashace export` computes (model.h). The energy of an atom depends on the neighbours within r_max and on nothing else, so centres are the
// atoms that this process owns, and neighbours its own atoms or ghosts; what falls on ghosts goes home with LAMMPS's reverse communication.

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"

#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <sstream>
#include <unistd.h>

using namespace LAMMPS_NS;

namespace {

struct Borders : Comm {    // `comm_modify group` is told to nobody else
  static int group(Comm *comm) { return comm->*(&Borders::bordergroup); }
};

constexpr int BLOCK = 64;    // centres whose neighbours are in memory at a time

class PairFlashACE : public Pair {
 public:
  PairFlashACE(LAMMPS *lmp);
  ~PairFlashACE() override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  double memory_usage() override;

 private:
  void load(const std::string &file);
  std::string open(const std::string &file);
  void gather(int start, int n);
  void add(int start, int n);

  void *library = nullptr;
  const FlashACEModel *model = nullptr;
  std::vector<int64_t> element_of_type;    // -1 for NULL

  // a block of centres, as evaluate.c wants it
  std::vector<int64_t> first, neighbour, species;
  std::vector<double> edge_vec, energies, g;
  std::vector<int> atoms;    // of each edge: the local index of the neighbour
  int64_t most = 1;          // neighbours of one centre
  char *room = nullptr;
  int64_t room_size = 0;
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
}

void PairFlashACE::settings(int narg, char **arg)
{
  if (narg > 0) error->all(FLERR, "pair_style flashace: expected nothing after it, got {}; the model goes into pair_coeff", arg[0]);
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
  int first_failed, length = problem.size();
  MPI_Allreduce(&mine, &first_failed, 1, MPI_INT, MPI_MIN, world);
  if (first_failed == comm->nprocs) return;
  MPI_Bcast(&length, 1, MPI_INT, first_failed, world);
  problem.resize(length);
  MPI_Bcast(&problem[0], length, MPI_CHAR, first_failed, world);
  error->all(FLERR, "pair_coeff: {}", problem);
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

// What is wrong with the file, if anything.
std::string PairFlashACE::open(const std::string &file)
{
  if (library) dlclose(library);
  library = open_library(file);
  const char *reason = library ? nullptr : dlerror();
  model = library ? (const FlashACEModel *) dlsym(library, "flashace_model") : nullptr;
  if (!model)
    return "expected a file that `flashace export model.pt --for lammps` has written, got " + file + (reason ? std::string(": ") + reason : "");
  if (model->abi != FLASHACE_ABI)
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
  if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol)
    error->all(FLERR, "pair_style flashace: expected all neighbors within the cutoff, got neigh_modify exclude; leave it out");
  if (neighbor->includegroup || Borders::group(comm))
    error->all(FLERR, "pair_style flashace: expected all atoms as neighbors, got those of one group; leave out {}",
               neighbor->includegroup ? "neigh_modify include" : "comm_modify group");
  for (int k = 1; k <= 3 && atom->molecular != Atom::ATOMIC; k++)
    if (force->special_lj[k] != 1.0 || force->special_coul[k] != 1.0)
      error->all(FLERR, "pair_style flashace: expected bonded neighbors like all others, got special_bonds that leave them out; write "
                 "`special_bonds lj/coul 1 1 1`");
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairFlashACE::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "pair_coeff: expected elements for the atom types {} and {}, got none", i, j);
  return model->r_max;
}

void PairFlashACE::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  for (int start = 0; start < list->inum; start += BLOCK) {
    const int n = std::min(BLOCK, list->inum - start);
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
                    g.data(), nullptr);
    add(start, n);
  }
}

// Neighbours closer than r_max, of centres start to start + n of the list: the list has those within the skin too.
void PairFlashACE::gather(int start, int n)
{
  const double *const *const x = atom->x;
  const double r_max2 = model->r_max * model->r_max;
  // `neighbour` is an index to `species`, and nothing else is asked of a neighbour: so after the centres stand the elements, once each
  species.resize(n);
  for (int k = 0; k < n; k++) species[k] = element_of_type[atom->type[list->ilist[start + k]]];
  const int64_t num_elements = *std::max_element(element_of_type.begin(), element_of_type.end()) + 1;
  for (int64_t e = 0; e < num_elements; e++) species.push_back(e);

  first.assign(1, 0);
  neighbour.clear();
  edge_vec.clear();
  atoms.clear();
  most = 1;
  for (int k = 0; k < n; k++) {
    const int i = list->ilist[start + k];
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
    const int i = list->ilist[start + k];
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

double PairFlashACE::memory_usage()
{
  return Pair::memory_usage() + room_size + sizeof(double) * (edge_vec.capacity() + g.capacity()) +
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

static Pair *create(LAMMPS *lmp)
{
  return new PairFlashACE(lmp);
}

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *register_plugin)
{
  lammpsplugin_t plugin;
  plugin.version = ((LAMMPS *) lmp)->version;
  plugin.style = "pair";
  plugin.name = "flashace";
  plugin.info = "FlashACE: attention on the Atomic Cluster Expansion";
  plugin.author = "The FlashACE developers";
  plugin.creator.v1 = (lammpsplugin_factory1 *) &create;
  plugin.handle = handle;
  ((lammpsplugin_regfunc) register_plugin)(&plugin, lmp);
}
