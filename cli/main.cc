// sluice: run a cluster on this machine, talk to one, look into models. One file per command.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include "cli/commands.h"
#include "common/version.h"

int main(int argc, char** argv) {
  CLI::App app("Sluice serves DeepSeek models with prefill and decode on separate workers.",
               "sluice");
  app.set_version_flag("--version", std::string("sluice ") + sluice::Version());
  app.require_subcommand(1);
  app.footer("`sluice COMMAND --help` explains a command and gives examples.");

  int exit_code = 0;
  sluice::cli::AddUp(&app, &exit_code);
  sluice::cli::AddDown(&app, &exit_code);
  sluice::cli::AddChat(&app, &exit_code);
  sluice::cli::AddStatus(&app, &exit_code);
  sluice::cli::AddBench(&app, &exit_code);
  sluice::cli::AddInspect(&app, &exit_code);
  sluice::cli::AddGenerate(&app, &exit_code);
  sluice::cli::AddLogits(&app, &exit_code);
  sluice::cli::AddMakeCheckpoint(&app, &exit_code);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // 0 for --help and --version, else a usage error.
    return app.exit(error) == 0 ? 0 : 2;
  }
  return exit_code;
}
