"""The chat formats of the decoder families, and those that LLaVA trained with: one object each.

Every format is written as it was documented for the models that were trained with it. The contents of messages are never trimmed, where some
of the published Jinja templates (Llama 2, Llama 3, Gemma) strip whitespace around them: equal for contents without any.
"""

from __future__ import annotations

from dataclasses import replace

from .marked import MarkedTemplate
from .prompted import PromptTemplate
from .templates import VICUNA_SYSTEM, CaptionTemplate, Template

PLAIN = CaptionTemplate("plain")
INSTRUCTBLIP = PromptTemplate("instructblip")
VICUNA_V1 = Template("vicuna_v1", VICUNA_SYSTEM)
LLAVA_V1 = Template("llava_v1", VICUNA_SYSTEM.replace("user", "human"))

# Qwen1.5 and Qwen3 with plain answers; Qwen2 and Qwen2.5 have a system prompt of their own. Source: the chat_template of
# Qwen/Qwen2-7B-Instruct, Qwen/Qwen2.5-7B-Instruct and Qwen/Qwen3-8B.
CHATML = MarkedTemplate(
    "chatml",
    opening="<|im_start|>user\n",
    around_system=("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"),
    to_answer="<|im_end|>\n<|im_start|>assistant\n",
    ending="<|im_end|>",
    to_question="\n<|im_start|>user\n",
    close="\n",
    tokens=("<|im_start|>", "<|im_end|>"),
)
QWEN2 = replace(CHATML, name="qwen2", system="You are a helpful assistant.")
QWEN2_5 = replace(CHATML, name="qwen2_5", system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")

# Source: Touvron et al. 2023 (arXiv 2307.09288), generation.py of meta-llama/llama.
LLAMA2 = MarkedTemplate(
    "llama2",
    opening="{bos}[INST] ",
    around_system=("{bos}[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
    to_answer=" [/INST]",
    lead=" ",
    ending=" {eos}",
    to_question="{bos}[INST] ",
)

# Source: llama/tokenizer.py (ChatFormat) of meta-llama/llama3. Llama 3.1 and later put a date into the system prompt.
LLAMA3 = MarkedTemplate(
    "llama3",
    opening="{bos}<|start_header_id|>user<|end_header_id|>\n\n",
    around_system=(
        "{bos}<|start_header_id|>system<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    ),
    to_answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ending="<|eot_id|>",
    to_question="<|start_header_id|>user<|end_header_id|>\n\n",
    tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)

# Mistral 7B Instruct v0.1 and v0.2, where [INST] is text; from v0.3 on it is a token, and no space follows the question.
# Source: the model cards, and mistral-common's instruct tokenizers v1 and v3.
MISTRAL = MarkedTemplate(
    "mistral",
    opening="{bos}[INST] ",
    around_system=("{bos}[INST] ", "\n\n"),
    to_answer=" [/INST]",
    lead=" ",
    ending="{eos}",
    to_question="[INST] ",
)
MISTRAL_V3 = replace(MISTRAL, name="mistral_v3", to_answer="[/INST]", tokens=("[INST]", "[/INST]"))

# Source: the chat_template of microsoft/Phi-3-mini-4k-instruct.
PHI3 = MarkedTemplate(
    "phi3",
    opening="<|user|>\n",
    around_system=("<|system|>\n", "<|end|>\n<|user|>\n"),
    to_answer="<|end|>\n<|assistant|>\n",
    ending="<|end|>",
    to_question="\n<|user|>\n",
    close="\n{eos}",
    tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)

# Gemma 1 to 3. There is no system role: a system prompt leads the first question, as in Gemma 3.
# Source: the chat_template of google/gemma-2-9b-it and google/gemma-3-4b-it.
GEMMA = MarkedTemplate(
    "gemma",
    opening="{bos}<start_of_turn>user\n",
    around_system=("{bos}<start_of_turn>user\n", "\n\n"),
    to_answer="<end_of_turn>\n<start_of_turn>model\n",
    ending="<end_of_turn>",
    to_question="\n<start_of_turn>user\n",
    close="\n",
    tokens=("<start_of_turn>", "<end_of_turn>"),
)

# The formats of LLaVA under its own names. Source: llava/conversation.py at c121f04. `vicuna_v0` leaves out the worked example that LLaVA's
# `v0` puts before every conversation, and is therefore its `llava_v0`.
VICUNA_V0 = MarkedTemplate(
    "vicuna_v0",
    opening="{bos}###Human: ",
    around_system=("{bos}", "###Human: "),
    to_answer="###Assistant:",
    lead=" ",
    ending="###",
    to_question="Human: ",
    system=VICUNA_SYSTEM.replace("user", "human"),
)
LLAVA_V0 = replace(VICUNA_V0, name="llava_v0")

_MMTAG_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the visual content that "
    "the user provides, and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
V0_MMTAG = replace(VICUNA_V0, name="v0_mmtag", system=_MMTAG_SYSTEM, image=("<Image>", "</Image>"))
V1_MMTAG = MarkedTemplate(
    "v1_mmtag",
    opening="{bos}USER: ",
    around_system=("{bos}", " USER: "),
    to_answer=" ASSISTANT:",
    lead=" ",
    ending="{eos}",
    to_question="USER: ",
    system=_MMTAG_SYSTEM,
    image=("<Image>", "</Image>"),
)

LLAVA_LLAMA_2 = replace(
    LLAMA2,
    name="llava_llama_2",
    system=(
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist "
        "the user with a variety of tasks using natural language."
    ),
)
MISTRAL_INSTRUCT = replace(LLAMA2, name="mistral_instruct", to_question="[INST] ")

MPT = MarkedTemplate(
    "mpt",
    opening="<|im_start|>user\n",
    around_system=("<|im_start|>system\n", "<|im_end|><|im_start|>user\n"),
    to_answer="<|im_end|><|im_start|>assistant\n",
    ending="<|im_end|>",
    to_question="<|im_start|>user\n",
    tokens=("<|im_start|>", "<|im_end|>"),
    system="A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
)
CHATML_DIRECT = replace(MPT, name="chatml_direct", system="Answer the questions.")
