"""SpeedUpNet's adapter: identity at the start, per sample, and only the adapter is trained."""

import pytest
import torch
from torch import nn

from skipstep.samplers.distill.catalog import load_recipe
from skipstep.samplers.distill.networks import difference, trained_parameters
from skipstep.samplers.distill.plane_prompts import TOKENS, PromptSource, TokenNet
from skipstep.samplers.distill.speedup import with_speedup
from skipstep.samplers.distill.trainer import Trainer, Training


def adapted(net: nn.Module) -> nn.Module:
    """Return the network with an adapter that has learned something."""
    student = load_recipe("speedup").trained(net, lora_rank=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained_parameters(student).values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return student


def asked(net: nn.Module, rows: slice, prompt: torch.Tensor) -> torch.Tensor:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    v: torch.Tensor = net(x[rows], torch.full((4,), 0.7)[rows], prompt[rows])
    return v


@torch.no_grad()
def test_it_begins_as_the_conditional_pass_and_then_heeds_the_negative_prompt() -> None:
    torch.manual_seed(0)
    net = TokenNet(width=16, depth=2)
    prompt, other, third = TOKENS[:4], TOKENS[4:], TOKENS[2:6]
    begun = load_recipe("speedup").trained(net, lora_rank=0)
    whole = slice(None)
    plain = asked(net, whole, prompt)
    torch.testing.assert_close(asked(begun, whole, torch.cat([prompt, other], 1)), plain)
    student = adapted(net)
    found = [asked(student, whole, torch.cat([prompt, each], 1)) for each in (other, third)]
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    alone = asked(student, slice(1, 2), torch.cat([prompt, other], 1))
    torch.testing.assert_close(alone, found[0][1:2])


def test_the_adapter_alone_is_trained_and_kept() -> None:
    torch.manual_seed(0)
    net = TokenNet(width=16, depth=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recipe = load_recipe("speedup", {"steps": 2, "teacher_steps": 1})
    trainer = Trainer(recipe, net, PromptSource(), Training(iterations=2, batch=8, warmup=0))
    trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    kept = difference(trainer.modules["student"], net)
    assert len(kept) == 2 * 2 * 4 and all(".processor." in name for name in kept)
    assert any(value.abs().sum() > 0 for name, value in kept.items() if name.endswith(".scale"))


def test_what_it_cannot_serve_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no cross-attention"):
        with_speedup(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="lora_rank=4: speedup trains an adapter"):
        load_recipe("speedup").trained(TokenNet(), lora_rank=4)
    student = adapted(TokenNet(width=16, depth=1))
    with pytest.raises(ValueError, match="equally many"):
        asked(student, slice(None), TOKENS[:4, :1])
