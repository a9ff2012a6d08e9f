#include "services/decode_worker/decode_handler.h"
#include "services/decode_worker/run_handler.h"
#include "services/worker_runtime/worker_program.h"

int main(int argc, char** argv) {
  sluice::worker::WorkerProgram program;
  program.name = "sluice-decode-worker";
  program.description =
      "Takes in KV blocks from prefill workers and generates answers; with --role both it computes "
      "prompts too. Attaches to routers.";
  program.examples =
      "  # The tiny model, for a router on this machine (its fleet port)\n"
      "  sluice-decode-worker models/deepseek-tiny --routers 127.0.0.1:8002\n"
      "  # One worker for prompts and answers, no transfer\n"
      "  sluice-decode-worker models/deepseek-tiny --role both\n"
      "  # Room for 4 GiB of KV, drain for two minutes on SIGTERM\n"
      "  sluice-decode-worker /models/deepseek --kv-cache 4GiB --drain-timeout 2m\n";
  program.roles = {{"decode", sluice::worker::MakeDecodeHandler},
                   {"both", sluice::worker::MakeRunHandler}};
  return sluice::worker::RunWorkerProgram(program, argc, argv);
}
