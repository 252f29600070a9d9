"""What `tools/lazyconfig_train_net.py` does around model and data. Detectron2's own script ignores the keys "ours"."""

import torch

train = dict(
    output_dir="./output",
    init_checkpoint="",  # weights to start from, or to evaluate
    max_iter=90000,
    seed=42,  # a negative seed draws one
    device="cuda" if torch.cuda.is_available() else "cpu",
    amp=dict(
        enabled=False,
        # ours
        dtype="bfloat16",  # or "float16"
        evaluate=False,  # evaluate with this dtype, too; without it in full precision, as Detectron2's script does
    ),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=5000,
    log_period=20,  # also: losses are fetched from a GPU, and checked, once in so many iterations
    cudnn_benchmark=False,
    # ours
    fewer_queries=False,  # if init_checkpoint has more queries than the model, take the first ones
    clip_grad=dict(enabled=True, max_norm=0.1, norm_type=2.0),
    accumulate=1,  # batches per optimizer step
    ema=dict(
        enabled=False,
        decay=0.9997,
        warmup=0,  # steps in which the decay rises
        evaluate=True,  # evaluate the averaged weights; with --eval-only, if the checkpoint has them
    ),
    best_metric="",  # e.g. "bbox/AP": keep the best checkpoint as model_best.pth
    deterministic=False,  # ask torch for deterministic kernels
)
