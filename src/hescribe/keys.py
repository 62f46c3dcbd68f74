"""Every name under which something is stored: AnnData slots, bundle files, format versions."""

from __future__ import annotations

SCHEMA_VERSION = 1  #: of predictions and bundles; raised when a reader must know the difference

# AnnData of a section or a prediction
SPATIAL = "spatial"  #: obsm: (n, 2) x, y in full-resolution pixels; uns: scanpy's library dict
SPATIAL_3D = "spatial_3d"  #: obsm of a stack: (n, 3) x, y, z in µm, common coordinates
PROVENANCE = "hescribe"  #: uns: where the data came from
CELL_TYPES = "cell_types"  #: obsm: DataFrame of proportions, spots × types
SCGPT = "X_scGPT"  #: obsm: precomputed scGPT embedding, where the user has it

# scalefactors of a section in uns["spatial"], as spaceranger names them
MICRONS_PER_PIXEL = "microns_per_pixel"  #: of the full-resolution image
BIN_UM = "bin_size_um"  #: side of a square bin
SPOT_DIAMETER = "spot_diameter_fullres"  #: pixels; of a bin its side

# obs of a section
ARRAY_ROW = "array_row"
ARRAY_COL = "array_col"
IN_TISSUE = "in_tissue"
N_CELLS = "n_cells"  #: cells whose centroid lies in the bin
ANNOTATION = "annotation"  #: label given by a pathologist
CELL_TYPE = "cell_type"  #: type of a cell of a single-cell reference
TLS = "tls"  #: number of the lymphoid structure, 0 outside; uns: how they were called
TLS_SCORE = "tls_score"  #: smoothed score
TLS_Z = "tls_z"  #: how far the smoothed score stands out from scores dealt out at random
REGION = "region"  #: name of the region a spot lies in
REGION_CLUSTER = "region_cluster"  #: number of its cluster, 0 the largest
REGIONS = "regions"  #: uns: what the clusters are named by
SCORE = "score_"  #: and a gene set's name
SECTION = "section_id"
PATIENT = "patient_id"

# var of a section
ENSEMBL = "gene_ids"  #: Ensembl id(s) of a symbol, where the file has them
MITOCHONDRIAL = "mitochondrial"
CONTROL = "control"  #: a control probe, not a gene

# var and obs of a prediction
EXPECTED_PCC = "expected_pcc"  #: cross-validated correlation of the gene
INTERVAL = "interval"  #: half-width of the gene's 90 % interval
NOVELTY = "novelty"  #: percentile of the tile's distance from the reference
INTERVAL_SCALE = "interval_scale"  #: factor on the gene's interval for this tile
IN_PANEL = "in_panel"  #: the gene is one of those the embedding was learned on
TRANSFERRED = "transferred"  #: the gene was measured in transcriptomes without image alone

# reference
EMBEDDING = "embedding"  #: obsm: key embeddings

# a prediction inside a SpatialData or WSIData store; keys as LazySlide has them for its own tiles
TILES_TABLE = "hescribe_tiles"
TILES_SHAPES = "hescribe_squares"  #: the tiles' outlines
TILE_REGION = "library_id"  #: obs: which shapes a row belongs to
TILE_ID = "tile_id"  #: obs and shapes: which of them

# columns of a table of published figures, as recipes give it and a benchmark takes it
PUBLISHED_ENCODER = "encoder"  #: may be there besides
PUBLISHED = ("method", "figure", "set", "pcc", "protocol", "source", "comparable", "differs")

# files of a bundle
BUNDLE_CONFIG = "config.json"
BUNDLE_WEIGHTS = "weights.safetensors"
BUNDLE_REFERENCE = "reference.zarr"
BUNDLE_GENES = "genes.parquet"
BUNDLE_CARD = "README.md"
BUNDLE_HISTORY = "history.csv"  #: training curves
