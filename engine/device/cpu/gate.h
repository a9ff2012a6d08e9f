// Expert selection from router scores: the four gates of the DeepSeek family (see GateKind). Scalar
// and exact about ties (the lowest id wins), so that every worker chooses alike. Pure; any thread.
#pragma once

#include <cstdint>

#include "modelspec/model_spec.h"

namespace sluice {

// `scores` [n_routed_experts]: softmax or sigmoid of the router's logits, as the gate demands.
// `bias` may be null. `biased` [n_routed_experts] and `groups` [n_group] are scratch. Writes the
// chosen ids, ascending, and their weights, [num_experts_per_tok] each.
void SelectExperts(const ModelSpec& spec, const float* scores, const float* bias, float* biased,
                   float* groups, int32_t* experts, float* weights);

}  // namespace sluice
