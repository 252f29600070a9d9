"""The score calibration of Mr. DETR++, for any detector with a sigmoid for each class."""

from detrx.d2.config import LazyCall as L
from detrx.projects.mr_detr import CalibratedDetections, CalibratedHeads, QualityLoss

_loss = L(QualityLoss)(weight=1.0, alpha=0.75, gamma=2.0)


def calibrate(model):
    """Switch it on: the heads, the loss of all queries, and the scores of detections."""
    model.decoder.heads._target_ = CalibratedHeads
    decoded = [supervision for supervision in model.criterion.supervisions if supervision.group == "main"]
    for each in (*decoded, *(method for method in model.methods if method.get("losses"))):
        each.losses.append(_loss)
    model.postprocess = L(CalibratedDetections)(detections=model.postprocess, phi=0.5)
