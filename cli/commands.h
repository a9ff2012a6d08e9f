// The commands of `sluice`. Each Add... registers a subcommand; when it is chosen its callback runs
// and sets *exit_code: 0 success, 1 failure (already explained on stderr). CLI11 answers usage
// errors.
#pragma once

#include <CLI/App.hpp>
#include <string>

#include "absl/status/status.h"

namespace sluice::cli {

void AddUp(CLI::App* app, int* exit_code);
void AddDown(CLI::App* app, int* exit_code);
void AddChat(CLI::App* app, int* exit_code);
void AddStatus(CLI::App* app, int* exit_code);
void AddBench(CLI::App* app, int* exit_code);
void AddInspect(CLI::App* app, int* exit_code);
void AddGenerate(CLI::App* app, int* exit_code);
void AddLogits(CLI::App* app, int* exit_code);
void AddMakeCheckpoint(CLI::App* app, int* exit_code);

// Prints "sluice: message" on stderr. The exit code for it: 2 when what was given has to be changed
// (INVALID_ARGUMENT), else 1.
int Fail(const absl::Status& status);

}  // namespace sluice::cli
