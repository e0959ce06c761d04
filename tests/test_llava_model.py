"""The dense model: the sequence it reads, its two calling conventions, batches, and bad input."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_model
from llava.model.multimodal_prompt import prepare_prompt
from tests import llava_tiny

NEW = {"do_sample": False, "max_new_tokens": 6}
IMAGE = 63  # placeholder id of transformers' convention


@pytest.fixture(scope="module")
def model():
    return llava_tiny.model()


def expanded(ids: torch.Tensor, placeholder: int = IMAGE) -> torch.Tensor:
    """[1, T] ids with -200 -> the same with one placeholder per visual token."""
    place = int((ids[0] == -200).nonzero()[0])
    image = torch.full((1, llava_tiny.GRID**2), placeholder)
    return torch.cat([ids[:, :place], image, ids[:, place + 1 :]], dim=1)


def test_equals_transformers_llava_in_its_convention(tmp_path):
    """The same files, read by transformers' own class and by ours."""
    folder = llava_tiny.write_transformers(tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_model(folder)
    ids, pixels = llava_tiny.prompt_ids(), llava_tiny.pixels(0)
    with torch.no_grad():
        expected = theirs(input_ids=expanded(ids), pixel_values=pixels).logits
        assert torch.allclose(ours(input_ids=expanded(ids), pixel_values=pixels).logits, expected, atol=1e-5)
        assert torch.allclose(ours(input_ids=ids, images=pixels).logits, expected, atol=1e-5)
    their_tokens = theirs.generate(input_ids=expanded(ids), pixel_values=pixels, **NEW)
    assert torch.equal(ours.generate(input_ids=expanded(ids), pixel_values=pixels, **NEW), their_tokens)
    new = their_tokens[:, expanded(ids).shape[1] :]
    assert torch.equal(ours.generate(ids, images=pixels, image_sizes=[(84, 84)], **NEW), new)
    assert torch.equal(ours.generate(input_ids=ids, images=pixels, **NEW), new)


def test_expanded_placeholders_are_minus_200_where_the_vocabulary_has_none(model):
    ids, pixels = llava_tiny.prompt_ids(), llava_tiny.pixels(0)
    full = model.generate(expanded(ids, -200), pixel_values=pixels, **NEW)
    assert torch.equal(full[:, ids.shape[1] - 1 + 36 :], model.generate(ids, images=pixels, **NEW))


def test_text_alone(model):
    ids = llava_tiny.prompt_ids()
    text = ids[ids != -200][None]
    new = model.generate(text, **NEW)
    assert new.shape == (1, 6)
    assert model(input_ids=text).logits[0, -1].argmax() == new[0, 0]


def test_generating_computes_logits_of_the_last_position_only(model):
    ids, pixels, positions = llava_tiny.prompt_ids(), llava_tiny.pixels(0), []
    hook = model.lm_head.register_forward_pre_hook(lambda module, args: positions.append(args[0].shape[1]))
    try:
        model.generate(ids, images=pixels, **NEW)
        model.generate(expanded(ids, -200), pixel_values=pixels, **NEW)
    finally:
        hook.remove()
    assert positions == [1] * 2 * NEW["max_new_tokens"]
    whole = model(input_ids=ids, images=pixels).logits
    torch.testing.assert_close(model(input_ids=ids, images=pixels, logits_to_keep=2).logits, whole[:, -2:])


def test_the_spans_say_where_the_pictures_are(model):
    ids = torch.cat([llava_tiny.prompt_ids(0, 3, 2), llava_tiny.prompt_ids(1, 1, 4)], dim=1)
    prompt = prepare_prompt(model.model, ids, None, llava_tiny.pixels(0, 1))
    assert [(span.start, span.length) for span in prompt.visual_spans[0]] == [(3, 36), (42, 36)]
    alone = prepare_prompt(model.model, llava_tiny.prompt_ids(1, 1, 4), None, llava_tiny.pixels(1))
    assert torch.allclose(prompt.inputs_embeds[0, 42:78], alone.inputs_embeds[0, 1:37], atol=1e-5)
    text = prompt.inputs_embeds[0, [0, 1, 2, 39, 40, 41, 78, 79, 80, 81]]
    assert torch.equal(text, model.model.embed_tokens(ids[ids != -200]))


def test_a_picture_first_and_last(model):
    for before, after in ((0, 3), (3, 0)):
        prompt = prepare_prompt(model.model, llava_tiny.prompt_ids(0, before, after), None, llava_tiny.pixels(0))
        assert prompt.visual_spans[0][0].start == before and prompt.inputs_embeds.shape[1] == 39


def ragged() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Two prompts in one batch, the shorter one padded on the right: (ids, mask, single prompts)."""
    singles = [llava_tiny.prompt_ids(0, 5, 7), llava_tiny.prompt_ids(1, 3, 4)]
    ids = torch.zeros(2, 13, dtype=torch.long)
    mask = torch.zeros(2, 13, dtype=torch.long)
    for row, single in enumerate(singles):
        ids[row, : single.shape[1]] = single
        mask[row, : single.shape[1]] = 1
    return ids, mask, singles


def test_ragged_batches_generate_what_single_prompts_do(model):
    ids, mask, singles = ragged()
    batch = model.generate(ids, images=llava_tiny.pixels(0, 1), attention_mask=mask, **NEW)
    for row, single in enumerate(singles):
        assert torch.equal(batch[row : row + 1], model.generate(single, images=llava_tiny.pixels(row), **NEW))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_follows_the_configuration(side):
    model = llava_tiny.model(tokenizer_padding_side=side)
    ids, mask, singles = ragged()
    with torch.no_grad():
        batch = model(input_ids=ids, attention_mask=mask, images=llava_tiny.pixels(0, 1)).logits
        single = model(input_ids=singles[1], images=llava_tiny.pixels(1)).logits[0]
    row = batch[1, -len(single) :] if side == "left" else batch[1, : len(single)]
    assert torch.allclose(row, single, atol=1e-4)


def test_select_layer_and_class_token():
    model = llava_tiny.model(mm_vision_select_layer=-1, mm_vision_select_feature="cls_patch")
    prompt = prepare_prompt(model.model, llava_tiny.prompt_ids(), None, llava_tiny.pixels(0))
    assert prompt.visual_spans[0][0].length == 37
    tower = model.get_vision_tower()
    states = tower.vision_tower(pixel_values=llava_tiny.pixels(0)).last_hidden_state
    assert torch.equal(tower(llava_tiny.pixels(0)), states), "layer -1 is the last layer's output, before the last norm"


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp3x_gelu"])
def test_projectors(kind):
    model = llava_tiny.model(mm_projector_type=kind)
    assert model.encode_images(llava_tiny.pixels(0))[0].shape == (36, 48)


def test_identity_projector():
    model = llava_tiny.model(mm_projector_type="identity", hidden_size=32)
    features = model.get_vision_tower()(llava_tiny.pixels(0))[0]
    assert torch.equal(model.encode_images(llava_tiny.pixels(0))[0], features)


PINPOINTS = [[84, 168], [168, 84], [168, 168]]


def test_anyres_prompts():
    model = llava_tiny.model(mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=PINPOINTS)
    tiles = [llava_tiny.pixels(0, 1, 2), llava_tiny.pixels(3, 4, 5, 6, 7)]
    ids = torch.cat([llava_tiny.prompt_ids(0), llava_tiny.prompt_ids(1)])
    sizes = [(168, 84), (168, 168)]
    prompt = prepare_prompt(model.model, ids, None, tiles, sizes, padding_side="left")
    assert [row[0].length for row in prompt.visual_spans] == [36 + 6 * 13, 36 + 12 * 13]
    new = model.generate(ids, images=tiles, image_sizes=sizes, **NEW)
    for row in range(2):
        one = model.generate(ids[row : row + 1], images=tiles[row : row + 1], image_sizes=sizes[row : row + 1], **NEW)
        assert torch.equal(new[row : row + 1], one)


def test_bad_input(model):
    ids, pixels = llava_tiny.prompt_ids(), llava_tiny.pixels(0, 1)
    with pytest.raises(ValueError, match=r"2 images given, but input_ids hold 1 image ids \(-200\)"):
        model.generate(ids, images=pixels, **NEW)
    with pytest.raises(ValueError, match=r"0 images given, but input_ids hold 1"):
        model.generate(ids, **NEW)
    with pytest.raises(ValueError, match=r"1 images given, but input_ids hold 0"):
        model(input_ids=ids[:, :3], images=pixels[:1])
    with pytest.raises(ValueError, match=r"1 pictures make 36 visual tokens, but input_ids hold 1 placeholders"):
        model(input_ids=ids, pixel_values=pixels[:1])
    with pytest.raises(ValueError, match=r"both images and pixel_values"):
        model.generate(ids, images=pixels[:1], pixel_values=pixels[:1])
    with pytest.raises(ValueError, match=r"has 296 tokens with its pictures, the model reads 256"):
        model.generate(torch.cat([ids, torch.ones(1, 248, dtype=torch.long)], dim=1), images=pixels[:1])
    with pytest.raises(ValueError, match=r"expected \[B, 3, side, side\]"):
        model.generate(ids, images=[pixels[0, 0]])
    torn = torch.cat([expanded(ids, -200), torch.tensor([[5]])], dim=1)
    torn[0, [20, -1]] = torn[0, [-1, 20]]
    with pytest.raises(ValueError, match=r"must be contiguous; the run that starts at position 5 is not"):
        model(input_ids=torn, pixel_values=pixels[:1])


def test_a_tokenizer_json_with_its_config_is_enough(tmp_path):
    """As the embedded checkpoint ships it."""
    checkpoint = llava_tiny.write_original(tmp_path)
    llava_tiny.write_tokenizer(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer_image_token("w1 <image> w2", tokenizer) == [5, -200, 6]


def test_a_picture_that_stands_in_a_list_twice_is_encoded_once():
    model = llava_tiny.model()
    first, second = llava_tiny.pixels(0)[0], llava_tiny.pixels(1)[0]
    expected = model.encode_images(torch.stack([first, second, first]))
    tower, sizes = model.get_vision_tower(), []
    handle = tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    found = model.encode_images([first, second, first])
    handle.remove()
    assert sizes == [2]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
