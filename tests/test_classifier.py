"""The classifier is a scikit-learn estimator, takes any frame, and answers as the network does."""
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks
from rdbpfn.classifier import RDBPFNClassifier


@parametrize_with_checks([RDBPFNClassifier()])
def test_scikit_learns_own_checks(estimator, check): check(estimator)
