"""The plan's numbers against what tensors with contents need."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

import run
from cnx.base import Base
from cnx.data.module import Batch
from cnx.errors import InputError
from cnx.model import Controlled
from cnx.task import plan
from cnx.task.fitting import economise
from cnx.task.ledger import Ledger
from cnx.task.plan import cache_bytes, count_pairs, empty_base, encode, estimate, histories, optimizer_bytes
from cnx.task.run_folder import note_choices
from small_runs import launch

CONF = Path(run.__file__).parent / "conf"

PLAN = ("task=plan", "trainer.accelerator=cpu", "trainer.precision=32-true", "micro_batch=2")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def test_the_ledger_forgets_what_is_gone() -> None:
    with Ledger() as ledger:
        first = torch.ones(1000)
        view = first[:10]
        assert ledger.now == 4000
        second = first + 1
        del second
        assert ledger.now == 4000 and ledger.peak == 8000
        del first
        assert ledger.now == 4000, "the view holds it"
        del view
    assert ledger.now == 0


@pytest.mark.parametrize("checkpointed", ["false", "true"])
def test_a_step_without_contents_needs_what_one_with_contents_does(tiny, tiny_conf, checkpointed: str) -> None:
    cfg = composed(*PLAN, f"memory.gradient_checkpointing={checkpointed}", f"base.path={tiny_conf.path}")
    need = estimate(cfg, accumulated=2)
    model = instantiate(cfg.model)(tiny).train()
    if checkpointed == "true":
        model.checkpoint_activations()
    objective = instantiate(cfg.objective)
    batch = (torch.randn(2, 4, 16, 16), torch.randn(2, 24, 128), torch.rand(2, 3, 128, 128), torch.zeros(2))
    with Ledger() as ledger:
        for _ in range(2):
            ledger.peak = before = ledger.now
            given = Batch(*(field.clone() for field in batch))
            loss = objective(model, given, torch.randn(2, 4, 16, 16), torch.tensor([3, 800])).mean()
            loss.backward()
            del given, loss
    if checkpointed == "true":
        for part in (tiny.unet, model.branch):
            part.disable_gradient_checkpointing()
    assert need.step == pytest.approx(ledger.peak - before, rel=0.05)
    assert need.gradients == need.trained == sum(4 * p.numel() for p in model.branch.parameters())
    assert need.optimizer == pytest.approx(2 * need.trained, rel=1e-3)


def test_checkpointing_halves_and_a_tracker_and_away_coders_show_in_the_plan(tiny_conf) -> None:
    path = f"base.path={tiny_conf.path}"
    plain = estimate(composed(*PLAN, path), 1)
    lean = estimate(composed(*PLAN, path, "memory.gradient_checkpointing=true", "memory.offload=true"), 1)
    half = estimate(composed(*PLAN, path, "trainer.precision=bf16-mixed", "memory.half_locked=true", "average=ema"), 1)
    assert lean.step < 0.7 * plain.step and lean.standing == plain.standing - plain.coders
    assert half.locked * 2 == plain.locked and half.average == half.trained == plain.trained
    assert plain.flop > 0 and estimate(composed(*PLAN, path), 3).flop == 3 * plain.flop


def test_processes_that_divide_the_weights_need_less_each_but_for_a_probe(tiny_conf) -> None:
    sharded = composed(*PLAN, f"base.path={tiny_conf.path}", "trainer=fsdp", "trainer.accelerator=cpu")
    plain, two, four = (estimate(cfg, 1, n) for cfg, n in ((composed(*PLAN), 1), (sharded, 2), (sharded, 4)))
    for needed in ("trained", "locked", "gradients", "optimizer"):
        for n, need in ((2, two), (4, four)):
            assert getattr(need, needed) == pytest.approx(getattr(plain, needed) / n, rel=1e-3)
    assert four.step == two.step > plain.step and four.training < two.training < plain.training
    assert two.drawing - plain.drawing == plain.trained + plain.locked


def after_a_step(cfg: DictConfig, base: Base) -> tuple[Controlled, torch.optim.Optimizer]:
    """A model and its optimizer with the state that a step leaves."""
    model: Controlled = instantiate(cfg.model)(base)
    optimizer = instantiate(cfg.optimizer)(model.parameter_groups())
    for parameter in model.branch.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def test_an_8_bit_optimizer_s_state_is_reckoned_as_it_is(tiny, tiny_conf) -> None:
    pytest.importorskip("bitsandbytes")
    cfg = composed(*PLAN, "optimizer=adam8bit", f"base.path={tiny_conf.path}")
    model, optimizer = after_a_step(cfg, tiny)
    kept = {
        id(x): x for state in optimizer.state.values() for name, x in state.items()
        if isinstance(x, torch.Tensor) and not name.startswith("qmap")
    }  # fmt: skip
    wanted = sum(x.numel() * x.element_size() for x in kept.values())
    assert optimizer_bytes(cfg, model, 1) == pytest.approx(wanted, rel=0.01)


def test_the_state_of_an_optimizer_that_asks_for_numbers_is_reckoned_as_it_is(tiny, tiny_conf) -> None:
    cfg = composed(*PLAN, "optimizer=adafactor", f"base.path={tiny_conf.path}")
    model, optimizer = after_a_step(cfg, tiny)
    wanted = sum(x.numel() * x.element_size() for state in optimizer.state.values() for x in state.values())
    assert estimate(cfg, 1).optimizer == wanted < 4 * sum(p.numel() for p in model.branch.parameters())


def test_the_plan_is_of_the_most_that_phases_make_of_a_run(capsys, tiny_conf, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = (*PLAN, f"base.path={tiny_conf.path}", "model=large_scale", "trainer.precision=bf16-mixed")
    given += ("memory.half_locked=true", "measured_steps=0", "data.limit=300")
    phased = composed(*given, "model.unlock=null", "phases=[{when: converged, unlock: all}]")
    most = estimate(composed(*given, "model.unlock=all"), 1)
    after = estimate(phased, 1, begun=(1,))
    for needed in ("trained", "locked", "gradients", "optimizer", "step", "drawing", "flop"):
        assert getattr(after, needed) == pytest.approx(getattr(most, needed), rel=1e-3)
    note_choices(phased)
    plan.run(phased)
    out = capsys.readouterr().out
    assert "this is the most, with phase 1 begun" in out
    assert f"{most.trained_parameters / 1e6:,.1f} M parameters" in out


def test_a_run_may_have_these_phases_behind_it() -> None:
    def reached(*phases: str) -> list[tuple[int, ...]]:
        return histories(composed(*PLAN, "trainer.max_steps=100", f"phases=[{','.join(phases)}]"))

    assert reached() == reached("{when: 3, lr: 1e-4}") == reached("{when: 100, links: all}") == [()]
    assert reached("{when: 9, unlock: null}", "{when: 3, unlock: all}") == [(), (2,), (2, 1)]
    assert set(reached("{when: converged, unlock: all}", "{when: 3, links: all}")) == {(), (1,), (2,), (1, 2), (2, 1)}
    for phase, named in (("{when: 3, unlock: some}", "phases.0..unlock=some"), ("{links: all}", "when is missing")):
        with pytest.raises(InputError, match=named):
            reached(phase)


@pytest.mark.parametrize("given", ["data.random_flip=true", "data.cache=off", "data.cache=latents"])
def test_coders_that_each_step_needs_are_at_hand_and_run_in_it(own_tiny, tiny_conf, given: str) -> None:
    lean = (*PLAN, f"base.path={tiny_conf.path}", "memory.offload=true")
    cached, cfg = estimate(composed(*lean), 1), composed(*lean, given)
    need = estimate(cfg, 1)
    model = instantiate(cfg.model)(own_tiny)
    economise(cfg, model)
    assert not need.coders_away and hasattr(own_tiny, "vae") and need.standing == cached.standing + need.coders
    assert need.step >= cached.step and need.flop > cached.flop
    with torch.device("meta"):
        empty = empty_base(cfg)
    with Ledger() as reckoned:
        encode(cfg, empty)
    with Ledger() as wanted:
        if given == "data.cache=latents":
            own_tiny.encode_text(["", ""])
        else:
            own_tiny.encode_images(torch.zeros(2, 3, 128, 128))
    assert reckoned.peak == pytest.approx(wanted.peak, rel=0.1)


@pytest.mark.parametrize(
    "given, named",
    [
        (["measured_steps=-3"], "measured_steps=-3: must be"),
        (["micro_batch=0"], "data.batch_size=0: must be at least 1"),
        (["micro_batch=-1"], "data.batch_size=-1: must be at least 1"),
        (["micro_batch=0", "batch_size=8"], "data.batch_size=0: must be at least 1"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: .*use 32-true"),
        (
            ["trainer.precision=32-true", "memory.half_locked=true"],
            "memory.half_locked=true, trainer.precision=32-true: only",
        ),
        (["optimizer._target_=nowhere.Adam"], "pip install nowhere"),
        (["phases=[{when: 3, unlock: some}]"], "unlock=some: must be decoder, all or null"),
    ],
)
def test_what_no_run_can_have_no_plan_has(in_workplace: None, given: list[str], named: str) -> None:
    with pytest.raises(SystemExit, match=named) as stopped:
        launch("task=plan", "trainer.accelerator=cpu", "data.limit=300", *given)
    assert "\n" not in str(stopped.value.code)


def test_the_plan_is_a_table_that_says_what_fits(capsys, tiny_conf, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = composed(*PLAN, "data.limit=300")
    assert count_pairs(cfg) == (300, 300)
    assert cache_bytes(cfg, 300, 300, (24, 128)) == 2 * (300 * 4 * 16 * 16 + 301 * 24 * 128)
    note_choices(cfg)
    for gib, verdict in ((1, "Fits into 1 GiB"), (0.01, "Does not fit into 0.01 GiB")):
        cfg.memory.device_gib = gib
        cfg.measured_steps = 1 if gib == 1 else 0
        plan.run(cfg)
        out = capsys.readouterr().out
        assert verdict in out and "147 optimizer steps an epoch" in out
        assert ("s a step" in out) == (gib == 1)
        # Of the memory only what the process grows by is known: nothing, where an earlier test needed more.
        assert "training, measured" not in out or gib == 1
