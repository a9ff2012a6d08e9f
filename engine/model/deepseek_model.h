// DeepSeek V2, V2-Lite, V2.5, V3, R1 and V3.1 over a Backend: Multi-head Latent Attention in the
// absorbed form for prefill and decode alike, and a mixture of experts. See model.h for the
// contract.
//
//   SLUICE_ASSIGN_OR_RETURN(auto weights, LoadDeepseekWeights(spec, load_options));
//   ... size the KV store from the memory that is left ...
//   std::unique_ptr<Model> model = CreateDeepseekModel(std::move(weights), kv_store.get());
#pragma once

#include <memory>

#include "engine/kv/kv_store.h"
#include "engine/model/deepseek_weights.h"
#include "engine/model/model.h"

namespace sluice {

// REQUIRES: kv_store outlives the model and has the layout MakeKvLayout(spec, weights' dtype).
std::unique_ptr<Model> CreateDeepseekModel(std::unique_ptr<DeepseekWeights> weights,
                                           KvStore* kv_store);

}  // namespace sluice
