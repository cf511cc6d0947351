"""What type checkers and editors see of the package, whose names are imported when they are first used."""

from nas_moreau.api import Result as Result
from nas_moreau.api import load_run as load_run
from nas_moreau.api import retrain as retrain
from nas_moreau.api import run as run
from nas_moreau.api import search as search
from nas_moreau.architecture.networks.costs import multiply_adds as multiply_adds
from nas_moreau.architecture.networks.costs import parameter_count as parameter_count
from nas_moreau.architecture.networks.network import Network as Network
from nas_moreau.architecture.networks.supernet import Supernet as Supernet
from nas_moreau.architecture.spaces.derivation import derive as derive
from nas_moreau.architecture.spaces.genotype import Genotype as Genotype
from nas_moreau.architecture.spaces.operation_table import register_operation as register_operation
from nas_moreau.architecture.spaces.space import SearchSpace as SearchSpace
from nas_moreau.architecture.spaces.space import load_space as load_space
from nas_moreau.architecture.spaces.zoo import load_genotype as load_genotype
from nas_moreau.bilevel.method import Method as Method
from nas_moreau.bilevel.method import StepSizes as StepSizes
from nas_moreau.bilevel.methods import register_method as register_method
from nas_moreau.bilevel.moreau_envelope import moreau as moreau
from nas_moreau.bilevel.problem import Bilevel as Bilevel
from nas_moreau.bilevel.solver import solve as solve
from nas_moreau.compare.protocol import compare as compare
from nas_moreau.config.loading import load_config as load_config
from nas_moreau.config.sections import Config as Config
from nas_moreau.data.loading import load_data as load_data
from nas_moreau.data.sources import register_source as register_source
from nas_moreau.errors import InputError as InputError
from nas_moreau.modules.choice import Choice as Choice
from nas_moreau.modules.search import search_module as search_module
from nas_moreau.runs.columns import register_metric as register_metric
from nas_moreau.search.mixing import register_mixing as register_mixing
from nas_moreau.search.rules import register_rule as register_rule
from nas_moreau.search.supernet_problem import Mixing as Mixing
from nas_moreau.training.loop import Hook as Hook

__version__: str
