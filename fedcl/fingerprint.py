"""What server and nodes must have in common before they work together, as one hash.

The same version of fedcl, the same scenario as each reads it with its own defaults, the same parameters and answers (so
the same model and method, also of an outside package), under the same names. The text that travels says what is meant;
the fingerprint says what it has become where it is carried out.
"""

import hashlib
import json
from functools import lru_cache

from fedcl import __version__, models, registry
from fedcl.answers import Layout, answer_layout
from fedcl.config import config_hash
from fedcl.digest import digest
from fedcl.world import world


@lru_cache(maxsize=4)
def fingerprint(text: str) -> str:
    """Return the fingerprint of a resolved configuration as it is installed here: 64 hexadecimal digits.

    Raises:
        ConfigError: it is no scenario, or names a part that is not installed.
    """
    scenario, stream = world(text)
    data, method = stream.dataset, scenario.server.method
    module = models.make(scenario.model, tuple(data.x.shape[1:]), data.classes, scenario.seed)
    parameters = Layout.of(dict(models.trained(module)))
    answers = answer_layout((*method.answers, *method.task_answers), parameters, method)
    names = [
        registry.name_of("server_methods", method), registry.name_of("client_methods", scenario.client.method),
    ]  # fmt: skip
    what = [__version__, config_hash(scenario), parameters.shapes, answers.shapes, names]
    if built := models.fixed(module):  # nobody sends these: all must have built the same
        what.append(digest(built))
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
