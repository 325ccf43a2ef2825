// Small kernels, most of them wrong on purpose: what the race detector must report, and what it must not.
#pragma once
#include <string>

void run_racy(const std::string& name);
