"""Whether a batch can be shared by the processes and the chunks of batch norm."""
from fastreid.config import CfgNode
from fastreid.utils import comm

from ..modeling.bn_chunk import check_chunks

__all__ = ["check_shares"]


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
