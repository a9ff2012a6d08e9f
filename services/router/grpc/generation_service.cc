#include "services/router/grpc/generation_service.h"

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "common/clock.h"
#include "common/status_macros.h"
#include "services/router/api/plan.h"
#include "services/router/api/request_id.h"

namespace sluice::router {
namespace {

std::string RequestIdOf(const grpc::CallbackServerContext& rpc) {
  const auto sent = rpc.client_metadata().find("x-request-id");
  if (sent == rpc.client_metadata().end()) return RequestIdOr("");
  return RequestIdOr({sent->second.data(), sent->second.size()});
}

// The call's deadline on our monotonic scale; the client's wall clock never matters.
absl::Time DeadlineOf(const grpc::CallbackServerContext& rpc) {
  const auto deadline = rpc.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  const auto left = deadline - std::chrono::system_clock::now();
  return MonotonicNow() + absl::FromChrono(left);
}

template <typename Request>
void FillCommon(grpc::CallbackServerContext* rpc, Request* request) {
  request->request_id = RequestIdOf(*rpc);
  request->received_at = MonotonicNow();
  request->deadline = DeadlineOf(*rpc);
  rpc->AddInitialMetadata("x-request-id", request->request_id);
}

// `rpc` may be gone afterwards.
grpc::ServerUnaryReactor* EndUnary(ApiContext* context, grpc::CallbackServerContext* rpc,
                                   grpc::ServerUnaryReactor* reactor, const char* method,
                                   const absl::Status& status) {
  rpc->AddInitialMetadata("x-request-id", RequestIdOf(*rpc));
  grpc::Status grpc_status;
  if (!status.ok()) {
    const ApiError error = ToApiError(status);
    AddErrorTrailers(error, rpc);
    grpc_status = ToGrpcStatus(error);
  }
  context->metrics().CountGrpcRequest(method, grpc_status.error_code());
  reactor->Finish(grpc_status);
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerationService::Generate(
    grpc::CallbackServerContext* rpc, const v1::GenerateRequest* request) {
  auto stream = std::make_shared<GenerationStream<v1::GenerateResponse>>(shared_, rpc, "Generate");
  CompletionRequest parsed = FromProto(*request);
  FillCommon(rpc, &parsed);
  stream->Start(static_cast<int64_t>(request->ByteSizeLong()),
                [context = shared_->context, parsed = std::move(parsed)] {
                  return PlanCompletion(*context, parsed);
                });
  return stream.get();
}

grpc::ServerWriteReactor<v1::ChatResponse>* GenerationService::Chat(
    grpc::CallbackServerContext* rpc, const v1::ChatRequest* request) {
  auto stream = std::make_shared<GenerationStream<v1::ChatResponse>>(shared_, rpc, "Chat");
  ChatRequest parsed = FromProto(*request);
  FillCommon(rpc, &parsed);
  stream->Start(static_cast<int64_t>(request->ByteSizeLong()),
                [context = shared_->context, parsed = std::move(parsed)] {
                  return PlanChat(*context, parsed);
                });
  return stream.get();
}

grpc::ServerUnaryReactor* GenerationService::RunOnPool(grpc::CallbackServerContext* rpc,
                                                       const char* method, size_t input_bytes,
                                                       std::function<absl::Status()> work) {
  grpc::ServerUnaryReactor* const reactor = rpc->DefaultReactor();
  shared_->prepares.Add(1);
  const bool posted = shared_->context->prepare_pool().Post(
      [shared = shared_, rpc, reactor, method, work = std::move(work)] {
        // Valid until the call is finished, here.
        const absl::Status status =
            rpc->IsCancelled() ? absl::CancelledError("the client left") : work();
        EndUnary(shared->context, rpc, reactor, method, status);
        shared->prepares.Add(-1);
      },
      static_cast<int64_t>(input_bytes));
  if (!posted) {
    shared_->prepares.Add(-1);
    EndUnary(shared_->context, rpc, reactor, method,
             MakeError(ErrorKind::kQueueFull, "too many requests are waiting to be tokenized"));
  }
  return reactor;
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* rpc,
                                                      const v1::TokenizeRequest* request,
                                                      v1::TokenizeResponse* response) {
  // Request and response live until the call is finished.
  return RunOnPool(rpc, "Tokenize", request->ByteSizeLong(),
                   [context = shared_->context, request, response] {
                     const absl::StatusOr<std::vector<TokenId>> tokens =
                         sluice::router::Tokenize(*context, FromProto(*request));
                     if (!tokens.ok()) return tokens.status();
                     response->mutable_token_ids()->Add(tokens->begin(), tokens->end());
                     response->set_max_model_len(context->MaxModelLen());
                     return absl::OkStatus();
                   });
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* rpc,
                                                        const v1::DetokenizeRequest* request,
                                                        v1::DetokenizeResponse* response) {
  return RunOnPool(rpc, "Detokenize", request->ByteSizeLong(),
                   [context = shared_->context, request, response] {
                     SLUICE_RETURN_IF_ERROR(
                         CheckDetokenize(*context, request->model(), request->token_ids_size()));
                     absl::StatusOr<std::string> text =
                         sluice::router::Detokenize(*context, FromProto(*request));
                     if (!text.ok()) return text.status();
                     response->set_text(*std::move(text));
                     return absl::OkStatus();
                   });
}

grpc::ServerUnaryReactor* GenerationService::ListModels(grpc::CallbackServerContext* rpc,
                                                        const v1::ListModelsRequest*,
                                                        v1::ListModelsResponse* response) {
  ApiContext* const context = shared_->context;
  for (const std::string& name : context->options().served_model_names) {
    v1::ModelInfo* model = response->add_models();
    model->set_id(name);
    model->set_max_model_len(context->MaxModelLen());
    model->set_created_unix_seconds(context->created_unix_seconds());
  }
  return EndUnary(context, rpc, rpc->DefaultReactor(), "ListModels", absl::OkStatus());
}

grpc::ServerUnaryReactor* GenerationService::GetStatus(grpc::CallbackServerContext* rpc,
                                                       const v1::GetStatusRequest*,
                                                       v1::GetStatusResponse* response) {
  ApiContext* const context = shared_->context;
  response->set_version(context->options().version);
  response->set_model(context->model_name());
  FillStatus(context->dispatcher().Snapshot(), response);
  return EndUnary(context, rpc, rpc->DefaultReactor(), "GetStatus", absl::OkStatus());
}

}  // namespace sluice::router
