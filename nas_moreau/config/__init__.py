"""The configuration of a run: sections and keys, presets, files and single settings. Imports no torch.

A configuration is data: nothing in it is ever imported or evaluated.
"""

from nas_moreau.config.keys import Key as Key
from nas_moreau.config.keys import config_keys as config_keys
from nas_moreau.config.keys import flatten as flatten
from nas_moreau.config.loading import load_config as load_config
from nas_moreau.config.loading import make_config as make_config
from nas_moreau.config.loading import make_section as make_section
from nas_moreau.config.sections import AlphasConfig as AlphasConfig
from nas_moreau.config.sections import AugmentConfig as AugmentConfig
from nas_moreau.config.sections import CheckpointConfig as CheckpointConfig
from nas_moreau.config.sections import Config as Config
from nas_moreau.config.sections import DataConfig as DataConfig
from nas_moreau.config.sections import DeriveConfig as DeriveConfig
from nas_moreau.config.sections import DistributedConfig as DistributedConfig
from nas_moreau.config.sections import LoggingConfig as LoggingConfig
from nas_moreau.config.sections import MoreauConfig as MoreauConfig
from nas_moreau.config.sections import PerformanceConfig as PerformanceConfig
from nas_moreau.config.sections import RetrainConfig as RetrainConfig
from nas_moreau.config.sections import SearchConfig as SearchConfig
from nas_moreau.config.sections import Section as Section
from nas_moreau.config.sections import SplitConfig as SplitConfig
from nas_moreau.config.sections import WeightsConfig as WeightsConfig

__all__ = [
    "AlphasConfig",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DeriveConfig",
    "DistributedConfig",
    "Key",
    "LoggingConfig",
    "MoreauConfig",
    "PerformanceConfig",
    "RetrainConfig",
    "SearchConfig",
    "Section",
    "SplitConfig",
    "WeightsConfig",
    "config_keys",
    "flatten",
    "load_config",
    "make_config",
    "make_section",
]
