// sluice.v1.Generation on gRPC's callback API: takes calls on gRPC's threads and passes them on.
// Heavy header, for the .cc files of this folder.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>

#include "services/router/grpc/generation_stream.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::router {

class GenerationService final : public v1::Generation::CallbackService {
 public:
  // `shared` must outlive the service; it need not be filled in yet.
  explicit GenerationService(GrpcServerShared* shared) : shared_(shared) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* rpc, const v1::GenerateRequest* request) override;
  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(grpc::CallbackServerContext* rpc,
                                                   const v1::ChatRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* rpc,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* rpc,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* rpc,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* rpc,
                                      const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override;

 private:
  // Runs `work` on the prepare pool, unless the client has left by then, and ends the call with
  // what it returns. `input_bytes`: of the request.
  grpc::ServerUnaryReactor* RunOnPool(grpc::CallbackServerContext* rpc, const char* method,
                                      size_t input_bytes, std::function<absl::Status()> work);

  GrpcServerShared* const shared_;
};

}  // namespace sluice::router
