"""Methods by name; to add one, write its file and add a line here."""

from hescribe.methods.base import Method
from hescribe.methods.baselines.coordinate import COORDINATE_KNN
from hescribe.methods.bleep import BLEEP
from hescribe.methods.fusion import FUSION
from hescribe.methods.knn import KNN
from hescribe.methods.mean import MEAN
from hescribe.methods.ridge import RIDGE, RIDGE_HEST

METHODS: dict[str, Method] = {
    method.name: method for method in (FUSION, BLEEP, RIDGE, RIDGE_HEST, KNN, COORDINATE_KNN, MEAN)
}

__all__ = ["METHODS", "Method"]
