from attrs import define

from ftcore import Loss, hookimpl


@define
class Options:
    smoothing: float = 0.1


class OptionsThatChange:
    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    @hookimpl
    def make_loss(self) -> Loss:
        from torch.nn import CrossEntropyLoss

        return Loss(CrossEntropyLoss(label_smoothing=self.config.smoothing))
