"""The halves of a U-Net written out, one picture and one resolution at a time: shares no code with `model.patches`."""

import numpy as np
import torch
import torch.nn.functional as F


def unet_patches(timestep):
    """Like `reference.linear_patches`, for a model with `unet`; `timestep` is the reference's."""

    def patches(weights, config, rows, noisy):
        u, w = config.unet, {k.removeprefix("patches."): v for k, v in weights.items() if k.startswith("patches.")}
        sizes = np.unique(rows.block[rows.block > 0], return_counts=True)[1].tolist()
        times = [int(rows.time[at]) for at in np.cumsum([0, *sizes[:-1]])]
        entered, passages = [], []
        for x, t in zip(noisy.split(sizes), times, strict=True):
            wave = timestep(np.array([t]), u.channels[0]).to(noisy.dtype)
            time = F.linear(
                F.silu(F.linear(wave, w["time.0.weight"], w["time.0.bias"])), w["time.2.weight"], w["time.2.bias"]
            )
            y, kept = down(u, w, x, time)
            entered.append(y)
            passages.append((kept, time))

        def leave(hidden):
            parts = zip(hidden.split(sizes), passages, strict=True)
            return torch.cat([up(u, w, each, *passage) for each, passage in parts])

        return torch.cat(entered), leave

    return patches


def down(u, w, x, time):
    """One picture of n x 1 patches."""
    n, p = len(x), u.patch
    x = conv(w, "stem", torch.cat([each.view(-1, p, p) for each in x], 1)[None])  # patches one below the other
    assert x.shape[2:] == (n * p, p)
    kept = []
    for level in range(len(u.channels)):
        if level:
            x = F.conv2d(x, w[f"shrink.{level - 1}.weight"], w[f"shrink.{level - 1}.bias"], stride=2)
        for block in range(u.blocks):
            x = residual(w, f"down.{level * u.blocks + block}", x, time)
            kept.append(x)
    return conv(w, "project_in", x, 0)[0, :, :, 0].T, kept


def up(u, w, hidden, kept, time):
    """[n, D] -> [n, L]."""
    x, kept, levels = conv(w, "project_out", hidden.T[None, :, :, None], 0), list(kept), len(u.channels)
    for level in range(levels):
        if level:
            x = conv(w, f"grow.{level - 1}", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        for block in range(u.blocks):
            x = residual(w, f"up.{level * u.blocks + block}", torch.cat((x, kept.pop()), 1), time)
    x = conv(w, "latent_out", F.silu(group_norm(w, "norm", x)))[0]
    return torch.stack([part.flatten() for part in x.split(u.patch, 1)])


def residual(w, at, x, time):
    y = conv(w, f"{at}.conv_in", F.silu(group_norm(w, f"{at}.norm_in", x)))
    y = y + F.linear(F.silu(time), w[f"{at}.shift.weight"], w[f"{at}.shift.bias"])[..., None, None]
    y = conv(w, f"{at}.conv_out", F.silu(group_norm(w, f"{at}.norm_out", y)))
    return y + (conv(w, f"{at}.skip", x, 0) if f"{at}.skip.weight" in w else x)


def conv(w, name, x, padding=1):
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)


def group_norm(w, name, x):
    groups = np.gcd(32, x.shape[1] // 2)
    parts = x.reshape(groups, -1)
    parts = (parts - parts.mean(1, keepdim=True)) / (parts.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return parts.view(x.shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]
