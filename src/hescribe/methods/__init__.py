"""Methods by name; to add one, write its file and add a line here."""

from hescribe.methods.base import Method
from hescribe.methods.baselines.coordinate import COORDINATE_KNN
from hescribe.methods.baselines.knn import KNN
from hescribe.methods.baselines.mean import MEAN
from hescribe.methods.baselines.ridge import RIDGE, RIDGE_HEST
from hescribe.methods.baselines.stnet import STNET
from hescribe.methods.baselines.triplex import TRIPLEX
from hescribe.methods.bleep import BLEEP
from hescribe.methods.carhe.clip import CARHE_CLIP
from hescribe.methods.carhe.model import CARHE
from hescribe.methods.cmrcnet import CMRCNET
from hescribe.methods.fusion.model import FUSION

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        FUSION,
        BLEEP,
        CMRCNET,
        CARHE,
        CARHE_CLIP,
        STNET,
        TRIPLEX,
        RIDGE,
        RIDGE_HEST,
        KNN,
        COORDINATE_KNN,
        MEAN,
    )
}

__all__ = ["METHODS", "Method"]
