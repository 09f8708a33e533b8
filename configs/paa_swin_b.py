# PAA Swin-B, the strongest teacher of the paper. Its backbone gives only the maps that FPN uses.
_base_ = "_base_/paa.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="SwinTransformer",
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=7,
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.3,
        patch_norm=True,
        out_indices=(1, 2, 3),
        convert_weights=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window7_224.pth",
        ),
    ),
    neck=dict(in_channels=[256, 512, 1024], start_level=0),
)
