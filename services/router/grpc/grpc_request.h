// sluice.v1 messages <-> the api's structs, and errors -> gRPC statuses. Pure; any thread.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "services/router/api/error_table.h"
#include "services/router/api/generation_call.h"
#include "services/router/api/request.h"
#include "services/router/core/dispatcher.h"
#include "sluice/v1/generation.pb.h"
#include "tokenizer/tokenizer.h"

namespace sluice::router {

CompletionRequest FromProto(const v1::GenerateRequest& proto);
ChatRequest FromProto(const v1::ChatRequest& proto);
TokenizeRequest FromProto(const v1::TokenizeRequest& proto);
DetokenizeRequest FromProto(const v1::DetokenizeRequest& proto);

void FillResponse(const Tokenizer& tokenizer, const GenerationPlan& plan, const ChoiceDelta& delta,
                  v1::GenerateResponse* proto);
void FillResponse(const Tokenizer& tokenizer, const GenerationPlan& plan, const ChoiceDelta& delta,
                  v1::ChatResponse* proto);
void FillUsage(const RequestSummary& summary, v1::Usage* usage, v1::Timings* timings);
void FillStatus(const ClusterSnapshot& snapshot, v1::GetStatusResponse* proto);

// With google.rpc.RetryInfo in the details when the error table tells to retry later.
grpc::Status ToGrpcStatus(const ApiError& error);
// sluice-error-code and, if one is to blame, sluice-error-param. REQUIRES: the call has not ended.
void AddErrorTrailers(const ApiError& error, grpc::CallbackServerContext* rpc);

}  // namespace sluice::router
