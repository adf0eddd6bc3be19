"""The fake encoder of scripts/attacks, which tests and attacks share."""

from attacks.fake import RECIPE, Factory, FakeEncoder

__all__ = ["RECIPE", "Factory", "FakeEncoder"]
