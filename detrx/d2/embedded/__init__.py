"""The part of Detectron2's API that detrx uses, for machines without Detectron2. Import it through `detrx.d2`."""
