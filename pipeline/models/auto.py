"""Makes transformers' Auto classes know the trained model.

Not in the thought package, as its copy in a released folder must not register a second model of this name.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

AutoConfig.register(QuietStarConfig.model_type, QuietStarConfig)
AutoModelForCausalLM.register(QuietStarConfig, QuietStarForCausalLM)
