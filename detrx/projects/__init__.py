"""The methods of the papers, one package each: `from detrx.projects.h_detr import HybridBranch`.

They are in the folder `projects` beside the configs, of the checkout or of the installed package: configs of projects
import those of the detectors relative to it.
"""

from detrx.config_zoo import config_root

__path__ = [str(config_root().parent / "projects")]
