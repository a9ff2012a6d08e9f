#include "services/prefill_worker/prefill_handler.h"
#include "services/worker_runtime/worker_program.h"

int main(int argc, char** argv) {
  sluice::worker::WorkerProgram program;
  program.name = "sluice-prefill-worker";
  program.description =
      "Computes prompts and sends their KV blocks to decode workers. Attaches to routers.";
  program.examples =
      "  # The tiny model, for a router on this machine (its fleet port)\n"
      "  sluice-prefill-worker models/deepseek-tiny --routers 127.0.0.1:8002\n"
      "  # In Kubernetes: every router behind a headless service that has\n"
      "  # publishNotReadyAddresses: true, probes on port 8003, KV over one device\n"
      "  sluice-prefill-worker /models/deepseek --routers dns:sluice-router-fleet:8002 \\\n"
      "      --worker-id $(POD_NAME) --admin-host 0.0.0.0 --admin-port 8003 \\\n"
      "      --transfer.net-devices eth1 --transfer.expect tcp\n";
  program.roles = {{"prefill", sluice::worker::MakePrefillHandler}};
  return sluice::worker::RunWorkerProgram(program, argc, argv);
}
