"""Pictures of predictions while a detector trains."""

from clipself_d2.engine.trainer import Trainer


def test_predictions_and_heat_maps_are_put_at_every_evaluation(emoji_cfg, monkeypatch) -> None:
    keys = ("TEST.PICTURES", 2, "TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ("emoji_ov_val",))
    cfg = emoji_cfg("fvit_untouched", *keys, "SOLVER.MAX_ITER", 2)
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {}))
    trainer = Trainer(cfg)
    seen = {}
    hook = next(h for h in trainer._hooks if type(h).__name__ == "ValidationPictures")
    draw = hook.after_step

    def after_step() -> None:
        draw()
        seen[trainer.iter] = list(trainer.storage._vis_data)
        assert trainer._trainer.model.training

    hook.after_step = after_step
    trainer.train()
    assert seen[0] == []
    names = [name for name, _, _ in seen[1]]
    assert names == ["predictions/0", "heat_map/0", "predictions/1", "heat_map/1"]
    heat = seen[1][1][1]
    assert heat.shape[0] == 1
    assert (heat.min(), heat.max()) == (0, 1)
