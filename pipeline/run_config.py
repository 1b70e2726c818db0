"""All settings of a run: the store, the corpus, the models, their promotion and the demo."""

from pydantic import ValidationInfo, field_validator

from model.config import PromotionConfig
from model.networks.kinds import DEFAULT_MODELS, Models
from pipeline.config import CorpusConfig, DemoConfig, PipelineConfig


class RunConfig(PipelineConfig):
    """All settings of a run."""

    corpus: CorpusConfig = CorpusConfig()
    models: Models = DEFAULT_MODELS
    promotion: PromotionConfig = PromotionConfig()
    demo: DemoConfig = DemoConfig()

    @property
    def pipeline(self) -> PipelineConfig:
        """The settings that the store depends on."""
        return PipelineConfig.model_validate(self.model_dump(include=set(PipelineConfig.model_fields)))

    @field_validator("promotion")
    @classmethod
    def _names_a_model(cls, promotion: PromotionConfig, info: ValidationInfo) -> PromotionConfig:
        """Refuse a model that is not configured. The default is accepted: a run may leave it out and not promote."""
        models = info.data.get("models", ())  # missing where it was refused
        if promotion.model not in (*models, PromotionConfig().model):
            raise ValueError(f"model {promotion.model} is not configured; choose one of {', '.join(models)}")
        return promotion
