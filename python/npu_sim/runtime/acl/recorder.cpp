// libascendcl.so, part 4: the recorder. Keeps what ran until Python asks for it.
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>

#include "internal.h"

EXPORT int npu_sim_quiet();

static std::atomic<int> g_on{0};
static std::mutex& g_mutex = *new std::mutex;
static std::string& g_text = *new std::string;

EXPORT int npu_sim_recording() { return g_on && !npu_sim_quiet(); }
EXPORT void npu_sim_record_start() { g_on++; }
EXPORT void npu_sim_record_stop() { g_on--; }

EXPORT void npu_sim_record(const char* kind, const char* name, const NpuSimAccess* accesses, uint64_t n) {
    if (!npu_sim_recording()) return;
    // [kind, name, [[address, bytes, how], ...]]; names are C identifiers with :: and dots.
    std::string line = std::string("[\"") + kind + "\",\"" + name + "\",[";
    for (uint64_t i = 0; i < n; i++) {
        if (i) line += ',';
        line += "[" + std::to_string(reinterpret_cast<uintptr_t>(accesses[i].address)) + "," +
                std::to_string(accesses[i].bytes) + "," + std::to_string(accesses[i].how) + "]";
    }
    line += "]]\n";
    std::lock_guard<std::mutex> lock(g_mutex);
    g_text += line;
}

EXPORT char* npu_sim_record_take() {
    std::lock_guard<std::mutex> lock(g_mutex);
    char* text = strdup(g_text.c_str());
    g_text.clear();
    return text;
}
EXPORT void npu_sim_record_free(char* text) { free(text); }
