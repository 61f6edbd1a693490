"""The properties by name."""

from flashace.teach.properties.drift import drift
from flashace.teach.properties.elastic import elastic
from flashace.teach.properties.energy_volume import energy_volume
from flashace.teach.properties.laws import laws
from flashace.teach.properties.phonons import phonons
from flashace.teach.properties.property import Property
from flashace.teach.properties.radial import radial
from flashace.teach.properties.scans import bond_scan, dihedral_scan

# in the order of the certificate
PROPERTIES: dict[str, Property] = {
    "energy_volume": energy_volume,
    "elastic": elastic,
    "phonons": phonons,
    "bond_scan": bond_scan,
    "dihedral_scan": dihedral_scan,
    "radial": radial,
    "laws": laws,
    "drift": drift,
}
