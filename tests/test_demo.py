"""The demo: its network, what it prints and draws, and what its landscapes claim."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import gdm
from gdm import demo
from gdm.demo import landscapes, methods, pictures, report, training
from gdm.demo.network import Network

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

PNG = b"\x89PNG\r\n\x1a\n"


def same_bits(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


# ---- the network -----------------------------------------------------------------------------------------------------


def test_backpropagation_agrees_with_finite_differences():
    rng = np.random.default_rng(1)
    network = Network((5, 7, 6, 4), rng, np.float64)
    images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
    network.backward(images, labels)
    step = 1e-6
    for param, grad in zip(network.params, network.grads, strict=True):
        measured = np.empty_like(grad)
        for i in np.ndindex(param.shape):
            kept = param[i]
            param[i] = kept + step
            above = network.loss(images, labels)
            param[i] = kept - step
            below = network.loss(images, labels)
            param[i] = kept
            measured[i] = (above - below) / (2 * step)
        assert np.any(grad)
        np.testing.assert_allclose(grad, measured, rtol=1e-6, atol=1e-8)


def test_backpropagation_writes_where_the_optimizer_looks():
    network = Network((3, 4, 2), np.random.default_rng(0))
    grads = list(network.grads)
    network.backward(np.ones((5, 3), np.float32), np.zeros(5, int))
    assert all(a is b for a, b in zip(grads, network.grads, strict=True))
    assert all(grad.dtype == np.float32 and np.any(grad) for grad in grads)


def test_loss_of_huge_logits_is_finite():
    network = Network((2, 3), np.random.default_rng(0), np.float64)
    images = np.array([[1e4, -1e4]])
    assert np.isfinite(network.loss(images, np.array([0])))


# ---- the training ----------------------------------------------------------------------------------------------------


def test_importing_the_demo_imports_neither_library():
    code = "import sys, gdm.demo; sys.exit(bool({'sklearn', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_run_prints_a_table_and_draws_both_pictures(tmp_path, capsys):
    before = gdm.backend()
    assert demo.run(tmp_path / "new" / "out", epochs=4) == 0
    assert gdm.backend() == before
    out, err = capsys.readouterr()
    for method in methods.METHODS:
        line = next(line for line in out.splitlines() if line.startswith(f"{method.name}  "))
        assert len(line.removeprefix(method.name).replace("not yet", "-").split()) == 6
        assert f"{method.name:<34} 4/4 epochs\n" in err
    for method in methods.CHECKED:
        assert f"\n  {method.name}: the 50,826 weights are identical to the last bit.\n" in out
    for name in ("digits.png", "landscapes.png"):
        path = tmp_path / "new" / "out" / name
        assert str(path) in out
        assert path.read_bytes().startswith(PNG)
        assert 20 * 1024 < path.stat().st_size < 300 * 1024


def test_run_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 33.0}):
        before = dict(matplotlib.rcParams)
        demo.run(tmp_path, epochs=1)
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("wrong", methods.CHECKED, ids=lambda method: method.name)
def test_run_tells_when_the_bits_differ(wrong, tmp_path, capsys, monkeypatch):
    def one_bit_off(method, *args, **kwargs):
        params = training.train_on_reference(method, *args, **kwargs)
        if method is wrong:
            params[0].view(np.uint32)[3, 5] ^= 1
        return params

    monkeypatch.setattr(demo, "train_on_reference", one_bit_off)
    assert demo.run(tmp_path, epochs=1) == 1
    out = capsys.readouterr().out
    assert f"  {wrong.name}: the 50,826 weights are NOT identical: 1 differ.\n" in out
    assert out.count("identical to the last bit") == len(methods.CHECKED) - 1


def test_run_on_the_reference_does_not_claim_a_comparison(tmp_path, capsys):
    gdm.set_backend("reference")
    assert demo.run(tmp_path, epochs=1) == 0
    assert gdm.backend() == "reference"
    assert "proves nothing" in capsys.readouterr().out


def test_run_needs_an_epoch(tmp_path):
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        demo.run(tmp_path, epochs=0)


@pytest.mark.parametrize("library", ["sklearn", "matplotlib"])
def test_run_names_what_to_install(library, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    assert demo.run(tmp_path / "out", epochs=1) == 2
    err = capsys.readouterr().err
    assert "pip install 'gdm-optim[demo]'" in err
    assert library in err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def digits():
    with demo._one_thread():  # as the demo does: on a busy machine more of them wait for each other
        yield training.load_digits(0)


def test_the_seed_fixes_everything(digits):
    def params(seed):
        return training.train(methods.TORCH, training.load_digits(seed), seed=seed, epochs=2).params

    assert same_bits(params(3), params(3))
    assert not same_bits(params(3), params(4))


def test_train_and_test_images_are_apart(digits):
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert len(digits.test_labels) == training.TEST_IMAGES
    assert digits.train_images.dtype == np.float32
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 1


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda method: method.name)
def test_the_reference_ends_with_the_same_bits(method, digits):
    native = training.train(method, digits, seed=1, epochs=1).params
    assert same_bits(native, training.train_on_reference(method, digits, seed=1, epochs=1))


def test_momentum_learns_faster_than_gradient_descent(digits):
    descent = training.train(methods.DESCENT, digits, seed=0, epochs=4)
    for method in (methods.TORCH, methods.CLASSIC, methods.NESTEROV):
        run = training.train(method, digits, seed=0, epochs=4)
        assert run.losses[-1] < descent.losses[-1] / 3
        assert run.accuracies[-1] > 0.93 > descent.accuracies[-1]


def test_the_others_learn_faster_than_gradient_descent_too(digits):
    descent = training.train(methods.DESCENT, digits, seed=0, epochs=10)
    for method in (methods.COSINE, methods.RMSPROP, methods.ADAM, methods.LION):
        run = training.train(method, digits, seed=0, epochs=10)
        assert run.losses[-1] < descent.losses[-1] / 3
        assert run.accuracies[-1] > 0.95 > descent.accuracies[-1]


def test_the_schedule_rises_to_its_peak_and_falls_to_0():
    rate = methods.COSINE.rate(100)
    assert [rate(0), rate(10), rate(100)] == [0, methods.PEAK, 0]
    assert methods.ADAM.rate(100) == methods.ADAM.lr


def test_the_adaptive_methods_are_at_gdms_defaults():
    assert methods.ADAM.lr == gdm.Adam([]).lr
    assert methods.LION.lr == gdm.Lion([]).lr


def test_the_two_forms_walk_the_same_path(digits):
    torch, classic = (training.train(m, digits, seed=0, epochs=3) for m in (methods.TORCH, methods.CLASSIC))
    np.testing.assert_allclose(torch.losses, classic.losses, rtol=1e-3)


def test_a_difference_from_numpy_is_an_error(digits):
    wrong = methods.NESTEROV._replace(update=methods.TORCH.update)
    with pytest.raises(AssertionError, match="Nesterov momentum: gdm and NumPy ended with different weights"):
        training.train(wrong, digits, seed=0, epochs=1)


def test_the_backend_is_restored_after_an_error(digits, monkeypatch):
    before = gdm.backend()
    monkeypatch.setattr(training.Trainer, "epoch", lambda self, order: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.train_on_reference(methods.TORCH, digits, seed=0, epochs=1)
    assert gdm.backend() == before


def test_different_bits_sees_the_sign_of_zero():
    zeros = np.zeros(3, np.float32)
    assert report.different_bits([zeros, zeros], [zeros, -zeros]) == 3


# ---- the landscapes --------------------------------------------------------------------------------------------------


def ends(landscape):
    """Where gradient descent and momentum end."""
    return [landscapes.descend(landscape, momentum)[-1] for momentum in (0.0, landscapes.MOMENTUM)]


@pytest.mark.parametrize("landscape", landscapes.LANDSCAPES, ids=lambda x: x.title)
def test_slope_is_that_of_the_height(landscape):
    rng = np.random.default_rng(0)
    step = 1e-6
    for x, y in rng.uniform(*np.array(landscape.window).T, size=(20, 2)):
        measured = [
            (landscape.height(x + step, y) - landscape.height(x - step, y)) / (2 * step),
            (landscape.height(x, y + step) - landscape.height(x, y - step)) / (2 * step),
        ]
        np.testing.assert_allclose(landscape.slope(x, y), measured, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("landscape", landscapes.LANDSCAPES, ids=lambda x: x.title)
def test_minimum_is_the_deepest_point_in_the_picture(landscape):
    x, y = np.meshgrid(*(np.linspace(*window, 500) for window in landscape.window))
    lowest = landscape.height(*landscape.minimum)
    assert lowest <= landscape.height(x, y).min() + 1e-4
    np.testing.assert_allclose(landscape.slope(*landscape.minimum), 0, atol=1e-4)


@pytest.mark.parametrize("landscape", landscapes.LANDSCAPES, ids=lambda x: x.title)
def test_paths_begin_at_the_start_and_stay_in_the_picture(landscape):
    low, high = np.array(landscape.window).T
    paths = [landscapes.descend(landscape, momentum) for momentum in (0.0, landscapes.MOMENTUM)]
    for path in [*paths, landscapes.descend_with_adam(landscape)]:
        assert path.shape == (landscape.steps + 1, 2)
        assert tuple(path[0]) == landscape.start
        assert np.all((low < path) & (path < high))


def test_momentum_gets_to_the_bottom_of_the_ravine():
    descent, momentum = ends(landscapes.RAVINE)
    assert landscapes.RAVINE.height(*momentum) < landscapes.RAVINE.height(*descent) / 100
    assert np.hypot(*momentum) < 0.3 < 3 < np.hypot(*descent)


def test_momentum_crosses_the_plateau():
    descent, momentum = ends(landscapes.PLATEAU)
    assert descent[0] < 0  # on the plateau still
    assert np.linalg.norm(momentum - landscapes.PLATEAU.minimum) < 0.3


def test_momentum_leaves_the_shallow_minimum():
    descent, momentum = ends(landscapes.WELLS)
    assert np.linalg.norm(momentum - landscapes.WELLS.minimum) < 0.1
    assert descent[0] < 0
    # Caught for good: in a minimum, with a higher one's gradient gone.
    np.testing.assert_allclose(landscapes.WELLS.slope(*descent), 0, atol=0.01)
    assert landscapes.WELLS.height(*descent) > landscapes.WELLS.height(*landscapes.WELLS.minimum) + 0.5


def test_adam_crosses_ravine_and_plateau_and_stays_in_the_shallow_minimum():
    ravine, plateau, wells = map(landscapes.descend_with_adam, landscapes.LANDSCAPES)
    assert np.linalg.norm(ravine[-1] - landscapes.RAVINE.minimum) < 0.6
    assert np.linalg.norm(plateau[-1] - landscapes.PLATEAU.minimum) < 0.3
    assert np.all(wells[:, 0] < 0)
    assert np.linalg.norm(wells[-1] - landscapes.descend(landscapes.WELLS, 0.0)[-1]) < 0.1


def test_the_axes_have_the_same_scale_or_the_label_says_the_factor(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: figures.append(self))
    pictures.draw_landscapes(tmp_path / "landscapes.png")
    figures[0].draw_without_rendering()
    for axes, landscape in zip(figures[0].axes, landscapes.LANDSCAPES, strict=True):
        (left, bottom), (right, top) = axes.transData.transform(np.array(landscape.window).T)
        (x_from, x_to), (y_from, y_to) = landscape.window
        stretch = (top - bottom) / (y_to - y_from) / ((right - left) / (x_to - x_from))
        said = re.search(r"drawn (\S+) times as large", axes.get_xlabel())
        assert stretch == pytest.approx(float(said[1]) if said else 1.0, rel=1e-3)
        assert axes.get_xlim() == pytest.approx(landscape.window[0])
        assert axes.get_ylim() == pytest.approx(landscape.window[1])


# ---- progress --------------------------------------------------------------------------------------------------------


def test_progress_is_drawn_live_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with demo.progress.Progress("training", 4) as progress:
        for done in range(1, 5):
            progress.update(done)
    lines = capsys.readouterr().err.split("\r")
    assert [line.split()[-2] for line in lines[1:]] == ["0/4", "1/4", "2/4", "3/4", "4/4"]
    assert lines[-1].endswith("[##############################] 4/4 epochs\n")
