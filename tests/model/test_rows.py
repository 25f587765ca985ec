"""A row for each token: what the embeddings give, and what becomes of another tensor in its place."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import XLMRobertaModel

from lsg_xlmr import LSGXLMRobertaForCausalLM, LSGXLMRobertaForMaskedLM, LSGXLMRobertaModel


SHORT, LONG = 11, 45  # blocks are of 8
LENGTHS = pytest.mark.parametrize("length", [SHORT, LONG])


@pytest.fixture
def model(tiny_config):
    return LSGXLMRobertaModel(tiny_config(num_global_tokens=3, sparsity_type="pooling")).eval()


@LENGTHS
@torch.no_grad()
def test_the_embeddings_are_those_of_stock(model, tiny_config, token_ids, length):
    stock = XLMRobertaModel(tiny_config()).eval()
    stock.embeddings.load_state_dict(model.embeddings.state_dict(), strict=False)
    ids = token_ids(2, length)
    assert torch.equal(model.embeddings(ids), stock.embeddings(ids))


@LENGTHS
@pytest.mark.parametrize("architecture", [LSGXLMRobertaModel, LSGXLMRobertaForMaskedLM, LSGXLMRobertaForCausalLM])
@torch.no_grad()
def test_a_hook_sees_the_tokens_once_and_may_give_others(tiny_config, token_ids, architecture, length):
    fields = {"is_decoder": True} if architecture is LSGXLMRobertaForCausalLM else {}
    model = architecture(tiny_config(num_global_tokens=3, **fields)).eval()
    embeddings, ids, others = model.base_model.embeddings, token_ids(2, length), token_ids(2, length)
    expected, rows, seen = model(others)[0], embeddings(others), []

    def replace(module, args, output):
        seen.append(output)
        return rows

    with embeddings.register_forward_hook(replace):
        found = model(ids)[0]
    assert len(seen) == 1 and torch.equal(seen[0], embeddings(ids))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@LENGTHS
def test_gradients_come_to_the_rows_that_a_hook_gives(model, token_ids, length):
    """Central differences of a row's own token; the globals' rows have gradients too."""
    ids = token_ids(1, length)
    model, direction = model.double(), torch.randn(32).double()
    rows = model.embeddings(ids).detach().requires_grad_()
    with model.embeddings.register_forward_hook(lambda *_: rows):
        (model(ids).last_hidden_state[0, 3] @ direction).backward()
        step = torch.zeros_like(rows)
        step[0, 7, 5] = 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad(), model.embeddings.register_forward_hook(lambda *_: rows + sign * step):
                values.append(model(ids).last_hidden_state[0, 3] @ direction)
    assert rows.grad[0, 7, 5].item() == pytest.approx(((values[0] - values[1]) / 2e-5).item(), rel=1e-5)
    assert model.embeddings.global_embeddings.weight.grad[:3].abs().sum(1).min() > 0


@LENGTHS
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_the_encoder_by_hand(model, token_ids, length, masked, implementation):
    model.set_attn_implementation(implementation)
    ids, mask = token_ids(2, length), torch.ones(2, length, dtype=torch.long)
    mask[1, -4:] = 0
    mask = mask if masked else None
    states, expected = model.embeddings(ids), model(ids, attention_mask=mask).last_hidden_state
    with pytest.raises(ValueError, match="call the model, with `inputs_embeds` if need be"):
        model.encoder(states, mask)
    embeddings = model.embeddings
    global_states = embeddings.LayerNorm(embeddings.global_embeddings.weight[:3]).expand(2, -1, -1)
    found = model.encoder(states, mask, global_states=global_states).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_rollout_finds_the_token_that_is_seen(model, token_ids):
    """Attention to one token alone, by its key: its column, and no other, has the weights of all rows."""
    model.set_attn_implementation("eager")
    ids = token_ids(1, SHORT)
    ids[0, 6] = 4  # the only one of its kind
    layer = model.encoder.layer[0].attention.self
    direction = torch.nn.functional.normalize(model.embeddings(ids)[0, 6], dim=0)
    layer.query.weight.zero_()
    layer.query.bias.fill_(10.0)
    layer.key.bias.zero_()
    layer.key.weight.copy_(direction.expand_as(layer.key.weight) * 10)
    weights = model(ids, output_attentions=True).attentions[0]
    assert weights.shape == (1, 4, SHORT, SHORT)
    assert (weights.argmax(-1) == 6).all()


def test_threads_have_their_own_globals(model, token_ids):
    """Eight texts of different lengths at a time, forward and backward: the gradients of one after the other."""
    texts = [token_ids(1 + i % 3, 20 + i) for i in range(8)]

    def gradients(ids):
        loss = model(ids).last_hidden_state.square().mean()
        return torch.autograd.grad(loss, model.embeddings.global_embeddings.weight)[0]

    expected = [gradients(ids) for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(gradients, texts), expected):
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_have_their_own_globals(model, token_ids, copied):
    ids = token_ids(2, LONG)
    before = model(ids).last_hidden_state
    other = copied(model)
    other.embeddings.global_embeddings.weight.normal_()
    assert torch.equal(model(ids).last_hidden_state, before)
    assert not torch.allclose(other(ids).last_hidden_state, before, atol=0.1)
