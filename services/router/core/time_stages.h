// Where the time of an answer's beginning goes. The first seven follow each other without a gap
// from the receipt of a request to its first token and so sum to the time to first token; the last
// three from there to the second token, the first that the decode worker makes. Constants; any
// thread.
#pragma once

#include <string>

#include "absl/container/btree_map.h"
#include "absl/time/time.h"

namespace sluice::router {

namespace time_stage {
inline constexpr char kParse[] = "parse";                 // headers received -> body parsed
inline constexpr char kTokenize[] = "tokenize";           // checks, chat encoding, tokens
inline constexpr char kAdmission[] = "admission";         // submitted -> a place among the running
inline constexpr char kRoute[] = "route";                 // -> a decode worker granted, P chosen
inline constexpr char kPrefillQueue[] = "prefill_queue";  // wait for P, the way there and back
inline constexpr char kPrefill[] = "prefill";             // P's first chunk -> first token
inline constexpr char kDetokenize[] = "detokenize";       // token at the router -> text written
inline constexpr char kKvTransfer[] = "kv_transfer";    // the part of the transfer that is exposed
inline constexpr char kDecodeQueue[] = "decode_queue";  // KV complete at D -> D's first step
inline constexpr char kFirstStep[] = "first_step";      // D's first step
}  // namespace time_stage

// In the order of time.
inline constexpr const char* kTimeStages[] = {time_stage::kParse,        time_stage::kTokenize,
                                              time_stage::kAdmission,    time_stage::kRoute,
                                              time_stage::kPrefillQueue, time_stage::kPrefill,
                                              time_stage::kDetokenize,   time_stage::kKvTransfer,
                                              time_stage::kDecodeQueue,  time_stage::kFirstStep};

using TimeStages = absl::btree_map<std::string, absl::Duration>;

}  // namespace sluice::router
