"""Nothing in, the plugins of this package for ASE out. ASE loads it by the entry point in setup.cfg; nobody else does."""

try:
    from ase._4.plugins.plugin import CalculatorPlugin
except ImportError:  # ASE calls its plugins experimental; should they move, `ase` has to go on without ours
    __ase_plugins__ = set()
else:
    __ase_plugins__ = {CalculatorPlugin("flashace", implementation="flashace.calculator.FlashACE")}
