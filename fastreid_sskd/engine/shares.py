"""How a batch is shared by the processes and the chunks of batch norm, and whether it can be."""
from collections.abc import Mapping

from fastreid.config import CfgNode
from fastreid.utils import comm

from ..modeling.bn_chunk import check_chunks

__all__ = ["check_shares", "images_per_bn"]


def images_per_bn(config: Mapping, processes: int) -> int:
    """Images of a training batch that share batch-norm statistics.

    Args:
        config: of the run, or the dict that its ``config.yaml`` is read as.
        processes: of the run.
    """
    images, model = config["SOLVER"]["IMS_PER_BATCH"], config["MODEL"]
    own = images if model["BACKBONE"].get("NORM") == "syncBN" else images // processes
    chunk = config.get("SSKD", {}).get("BN_CHUNK", 0) if model["META_ARCHITECTURE"] in ("SSKD", "SSKDSource") else 0
    return min(chunk or own, own)


def check_shares(cfg: CfgNode) -> None:
    """Check that every process has an equal share of whole identities, and every chunk of it a variance.

    Raises:
        ValueError: if not.
    """
    images, instances, processes = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE, comm.get_world_size()
    if processes > 1 and images % (processes * instances):
        raise ValueError(
            f"a batch of SOLVER.IMS_PER_BATCH = {images} images cannot be shared by {processes} processes in whole "
            f"identities of DATALOADER.NUM_INSTANCE = {instances} images: make it a multiple of {processes * instances}"
        )
    check_chunks(images // processes, cfg.SSKD.BN_CHUNK)
