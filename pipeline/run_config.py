"""All settings of a run: those of the store, the models, their promotion, and the demo."""

from model.config import ModelsConfig, PromotionConfig
from pipeline.config import DemoConfig, PipelineConfig


class RunConfig(PipelineConfig):
    """All settings of a run."""

    models: ModelsConfig = ModelsConfig()
    promotion: PromotionConfig = PromotionConfig()
    demo: DemoConfig = DemoConfig()

    @property
    def pipeline(self) -> PipelineConfig:
        """The settings that the store depends on."""
        return PipelineConfig.model_validate(self.model_dump(include=set(PipelineConfig.model_fields)))
