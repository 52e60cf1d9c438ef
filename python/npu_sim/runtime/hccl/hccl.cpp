// libhccl.so: collectives between processes of one machine, through POSIX shared memory.
//
// A communicator is one shared segment: a barrier, one slot of kChunk bytes per rank, and one
// channel per ordered pair of ranks for send and receive. Data of any size pass in chunks. Whoever
// waits gives up after NPU_SIM_TIMEOUT seconds, or at once when a peer's process is gone. Ranks that
// call different collectives, or with different arguments, are told so instead of exchanging bytes.
#include "hccl/hccl.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../acl/device.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr size_t kChunk = 4 << 20;     // bytes per rank and round of a collective
constexpr size_t kMessage = 1 << 18;   // bytes per round of a send
constexpr uint32_t kMaxRanks = 16;

struct Channel {
    std::atomic<uint32_t> full;
    char data[kMessage];
};

// What a rank is about to do; equal on all ranks or it is an error.
struct Intent {
    char name[24];
    uint64_t count;
    int32_t type, op, root;
    bool operator==(const Intent& o) const {
        return !strcmp(name, o.name) && count == o.count && type == o.type && op == o.op && root == o.root;
    }
};

struct Shared {
    std::atomic<uint32_t> arrived, generation, attached;
    std::atomic<int32_t> pids[kMaxRanks];
    Intent intents[kMaxRanks];
};

struct Communicator {
    uint32_t size, rank;
    std::string name;
    char* base;
    size_t bytes;
    Shared* shared() { return reinterpret_cast<Shared*>(base); }
    char* slot(uint32_t r) { return base + sizeof(Shared) + r * kChunk; }
    Channel* channel(uint32_t from, uint32_t to) {
        return reinterpret_cast<Channel*>(base + sizeof(Shared) + size * kChunk + (from * size + to) * sizeof(Channel));
    }
};

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Waits until `done`; the error names `what`. The Python interpreter is given free meanwhile.
int wait_until(Communicator& c, const char* what, const std::function<bool()>& done) {
    for (int i = 0; i < 200; i++)
        if (done()) return HCCL_SUCCESS;
    static auto check = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
    static auto save = reinterpret_cast<void* (*)()>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"));
    static auto restore = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"));
    void* python = check && check() ? save() : nullptr;
    const double end = now() + npu_sim_wait_limit();
    int result = HCCL_SUCCESS;
    for (unsigned spins = 0; !done(); spins++) {
        usleep(spins < 1000 ? 20 : 200);
        if (spins % 512 != 511) continue;
        for (uint32_t r = 0; r < c.size && result == HCCL_SUCCESS; r++) {
            int pid = c.shared()->pids[r];
            if (pid && kill(pid, 0) && errno == ESRCH && !done())
                result = npu_sim_error(HCCL_E_REMOTE, "%s on rank %u: the process of rank %u (%d) has ended", what, c.rank, r, pid);
        }
        if (result == HCCL_SUCCESS && now() > end)
            result = npu_sim_error(HCCL_E_TIMEOUT, "%s on rank %u of %u: the others did not come within %.0f s (NPU_SIM_TIMEOUT)", what,
                                   c.rank, c.size, npu_sim_wait_limit());
        if (result != HCCL_SUCCESS) break;
    }
    if (python) restore(python);
    return result;
}

int barrier(Communicator& c, const char* what) {
    Shared* s = c.shared();
    uint32_t generation = s->generation;
    if (++s->arrived == c.size) {
        s->arrived = 0;
        s->generation++;
        return HCCL_SUCCESS;
    }
    return wait_until(c, what, [=] { return s->generation != generation; });
}

// All ranks say what they do, and find that it is the same.
int agree(Communicator& c, const Intent& mine) {
    Shared* s = c.shared();
    s->intents[c.rank] = mine;
    if (int e = barrier(c, mine.name)) return e;
    for (uint32_t r = 0; r < c.size; r++) {
        const Intent& other = s->intents[r];
        if (other == mine) continue;
        return npu_sim_error(HCCL_E_PARA, "%s of %lu elements (type %d, op %d, root %d) on rank %u, but %s of %lu (%d, %d, %d) on rank %u",
                             mine.name, static_cast<unsigned long>(mine.count), mine.type, mine.op, mine.root, c.rank, other.name,
                             static_cast<unsigned long>(other.count), other.type, other.op, other.root, r);
    }
    return barrier(c, mine.name);
}

size_t element_bytes(HcclDataType t) {
    switch (t) {
        case HCCL_DATA_TYPE_INT8: case HCCL_DATA_TYPE_UINT8: case HCCL_DATA_TYPE_HIF8: case HCCL_DATA_TYPE_FP8E4M3:
        case HCCL_DATA_TYPE_FP8E5M2: case HCCL_DATA_TYPE_FP8E8M0: return 1;
        case HCCL_DATA_TYPE_INT16: case HCCL_DATA_TYPE_UINT16: case HCCL_DATA_TYPE_FP16: case HCCL_DATA_TYPE_BFP16: return 2;
        case HCCL_DATA_TYPE_INT64: case HCCL_DATA_TYPE_UINT64: case HCCL_DATA_TYPE_FP64: return 8;
        case HCCL_DATA_TYPE_INT128: return 16;
        default: return 4;
    }
}

// bfloat16, with the rounding of the device: to nearest, ties to even.
struct BFloat16 {
    uint16_t bits;
    operator float() const {
        uint32_t u = static_cast<uint32_t>(bits) << 16;
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
    BFloat16(float f) {
        uint32_t u;
        memcpy(&u, &f, 4);
        bits = (u & 0x7fffffff) > 0x7f800000 ? static_cast<uint16_t>((u >> 16) | 0x40)
                                             : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
};

// Sum with Wide between the ranks, rounded once at the end.
template <class T, class Wide>
void combine(Communicator& c, void* out, size_t n, HcclReduceOp op) {
    T* result = static_cast<T*>(out);
    for (size_t i = 0; i < n; i++) {
        Wide a = static_cast<Wide>(reinterpret_cast<T*>(c.slot(0))[i]);
        for (uint32_t r = 1; r < c.size; r++) {
            Wide b = static_cast<Wide>(reinterpret_cast<T*>(c.slot(r))[i]);
            a = op == HCCL_REDUCE_SUM ? a + b : op == HCCL_REDUCE_PROD ? a * b : op == HCCL_REDUCE_MAX ? std::max(a, b) : std::min(a, b);
        }
        result[i] = static_cast<T>(a);
    }
}

int reduce_slots(Communicator& c, void* out, size_t n, HcclDataType t, HcclReduceOp op) {
    switch (t) {
        case HCCL_DATA_TYPE_INT8: combine<int8_t, int8_t>(c, out, n, op); return 0;
        case HCCL_DATA_TYPE_INT16: combine<int16_t, int16_t>(c, out, n, op); return 0;
        case HCCL_DATA_TYPE_INT32: combine<int32_t, int32_t>(c, out, n, op); return 0;
        case HCCL_DATA_TYPE_INT64: combine<int64_t, int64_t>(c, out, n, op); return 0;
        case HCCL_DATA_TYPE_FP32: combine<float, float>(c, out, n, op); return 0;
        case HCCL_DATA_TYPE_FP16: combine<_Float16, float>(c, out, n, op); return 0;
        case HCCL_DATA_TYPE_BFP16: combine<BFloat16, float>(c, out, n, op); return 0;
        default: return HCCL_E_NOT_SUPPORT;
    }
}

// HCCL reduces these types only (hccl.h, comments of HcclAllReduce).
int check_reduction(const char* name, HcclDataType t, HcclReduceOp op) {
    switch (t) {
        case HCCL_DATA_TYPE_INT16: case HCCL_DATA_TYPE_BFP16:
            if (op == HCCL_REDUCE_PROD)
                return npu_sim_error(HCCL_E_NOT_SUPPORT, "%s: dataType %d has no product", name, t);
            return HCCL_SUCCESS;
        case HCCL_DATA_TYPE_INT8: case HCCL_DATA_TYPE_INT32: case HCCL_DATA_TYPE_INT64: case HCCL_DATA_TYPE_FP16:
        case HCCL_DATA_TYPE_FP32: return HCCL_SUCCESS;
        default:
            return npu_sim_error(HCCL_E_NOT_SUPPORT, "%s: dataType %d cannot be reduced; int8, int16, int32, int64, float16, float32 and bfloat16 can",
                                 name, t);
    }
}

int check_memory(const char* name, const char* argument, const void* p, size_t bytes) {
    if (bytes == 0 || npu_sim_is_device(p, bytes)) return HCCL_SUCCESS;
    return npu_sim_error(HCCL_E_PTR, "%s: %s %p (%zu bytes) is not live device memory", name, argument, p, bytes);
}

// ---------------------------------------------------------------------------- the exchanges proper
using Bytes = std::vector<std::pair<size_t, size_t>>;  // offset and length in a buffer, per rank

// Moves piece r of rank s's `send` to piece s of rank r's `receive`; with `same` there is only one
// piece, which goes to everybody.
int exchange(Communicator& c, const char* name, const char* send, const Bytes& out, bool same, char* receive, const Bytes& in) {
    size_t largest = 0;
    for (auto& p : out) largest = std::max(largest, p.second);
    for (auto& p : in) largest = std::max(largest, p.second);
    // Pieces differ between ranks: the number of rounds is the largest of all.
    uint64_t* sizes = reinterpret_cast<uint64_t*>(c.slot(c.rank));
    *sizes = largest;
    if (int e = barrier(c, name)) return e;
    for (uint32_t r = 0; r < c.size; r++) largest = std::max<size_t>(largest, *reinterpret_cast<uint64_t*>(c.slot(r)));
    if (int e = barrier(c, name)) return e;
    const size_t room = same ? kChunk : kChunk / c.size;
    for (size_t done = 0; done < largest; done += room) {
        for (uint32_t r = 0; r < (same ? 1 : c.size); r++) {
            auto [offset, length] = out[r];
            if (done < length) memcpy(c.slot(c.rank) + r * room, send + offset + done, std::min(room, length - done));
        }
        if (int e = barrier(c, name)) return e;
        for (uint32_t s = 0; s < c.size; s++) {
            auto [offset, length] = in[s];
            if (done < length) memcpy(receive + offset + done, c.slot(s) + (same ? 0 : c.rank * room), std::min(room, length - done));
        }
        if (int e = barrier(c, name)) return e;
    }
    return HCCL_SUCCESS;
}

int all_reduce(Communicator& c, const char* name, const char* send, char* receive, uint64_t count, HcclDataType t, HcclReduceOp op) {
    const size_t element = element_bytes(t), per_round = kChunk / element;
    std::vector<char> result;
    for (uint64_t done = 0; done < count; done += per_round) {
        const size_t n = std::min<uint64_t>(per_round, count - done);
        memcpy(c.slot(c.rank), send + done * element, n * element);
        if (int e = barrier(c, name)) return e;
        if (receive) {
            result.resize(n * element);
            reduce_slots(c, result.data(), n, t, op);
            memcpy(receive + done * element, result.data(), n * element);
        }
        if (int e = barrier(c, name)) return e;
    }
    return HCCL_SUCCESS;
}

int broadcast(Communicator& c, const char* name, char* buffer, size_t bytes, uint32_t root) {
    for (size_t done = 0; done < bytes; done += kChunk) {
        const size_t n = std::min(kChunk, bytes - done);
        if (c.rank == root) memcpy(c.slot(root), buffer + done, n);
        if (int e = barrier(c, name)) return e;
        if (c.rank != root) memcpy(buffer + done, c.slot(root), n);
        if (int e = barrier(c, name)) return e;
    }
    return HCCL_SUCCESS;
}

int send_bytes(Communicator& c, const char* data, size_t bytes, uint32_t to) {
    Channel* channel = c.channel(c.rank, to);
    for (size_t done = 0; done < bytes; done += kMessage) {
        if (int e = wait_until(c, "HcclSend", [=] { return !channel->full; })) return e;
        memcpy(channel->data, data + done, std::min(kMessage, bytes - done));
        channel->full = 1;
    }
    return HCCL_SUCCESS;
}

int receive_bytes(Communicator& c, char* data, size_t bytes, uint32_t from) {
    Channel* channel = c.channel(from, c.rank);
    for (size_t done = 0; done < bytes; done += kMessage) {
        if (int e = wait_until(c, "HcclRecv", [=] { return channel->full != 0; })) return e;
        memcpy(data + done, channel->data, std::min(kMessage, bytes - done));
        channel->full = 0;
    }
    return HCCL_SUCCESS;
}

// ------------------------------------------------------------------------------------- submission
struct Work {
    std::string name;
    std::vector<NpuSimAccess> accesses;
    std::function<int()> body;
};

int run_work(void* state) {
    Work* w = static_cast<Work*>(state);
    if (int e = w->body()) return e;
    if (npu_sim_recording()) npu_sim_record("collective", w->name.c_str(), w->accesses.data(), w->accesses.size());
    return 0;
}

HcclResult submit(const char* name, aclrtStream stream, std::vector<NpuSimAccess> accesses, std::function<int()> body) {
    for (const NpuSimAccess& a : accesses)
        if (int e = check_memory(name, a.how ? "the receive buffer" : "the send buffer", a.address, a.bytes))
            return static_cast<HcclResult>(e);
    NpuSimTask task = {name, run_work, [](void* s) { delete static_cast<Work*>(s); }, new Work{name, std::move(accesses), std::move(body)}, 0};
    return static_cast<HcclResult>(npu_sim_submit(stream, &task));
}

Communicator& of(HcclComm c) { return *static_cast<Communicator*>(c); }

Intent intent(const char* name, uint64_t count, HcclDataType t, int op = -1, int root = -1) {
    Intent i = {};
    snprintf(i.name, sizeof i.name, "%s", name);
    i.count = count, i.type = t, i.op = op, i.root = root;
    return i;
}

Bytes even(uint32_t ranks, size_t bytes) {
    Bytes b;
    for (uint32_t r = 0; r < ranks; r++) b.push_back({r * bytes, bytes});
    return b;
}

// Counts and displacements in elements, as HcclAlltoAllV takes them.
Bytes uneven(uint32_t ranks, const void* counts, const void* displacements, size_t element) {
    Bytes b;
    for (uint32_t r = 0; r < ranks; r++)
        b.push_back({static_cast<const uint64_t*>(displacements)[r] * element, static_cast<const uint64_t*>(counts)[r] * element});
    return b;
}

size_t span(const Bytes& pieces) {
    size_t end = 0;
    for (auto& p : pieces) end = std::max(end, p.second ? p.first + p.second : 0);
    return end;
}

// Segments of processes that ended before everyone had attached.
void sweep() {
    DIR* dir = opendir("/dev/shm");
    if (!dir) return;
    while (dirent* entry = readdir(dir)) {
        int pid = 0;
        if (sscanf(entry->d_name, "npu_sim_%d_", &pid) == 1 && kill(pid, 0) && errno == ESRCH) shm_unlink(entry->d_name);
    }
    closedir(dir);
}

}  // namespace

// ---------------------------------------------------------------------------------- communicators
EXPORT HcclResult HcclGetRootInfo(HcclRootInfo* info) {
    static std::atomic<int> next{0};
    sweep();
    memset(info, 0, sizeof *info);
    snprintf(info->internal, 64, "/npu_sim_%d_%d", getpid(), next++);
    return HCCL_SUCCESS;
}

EXPORT HcclResult HcclCommInitRootInfo(uint32_t size, const HcclRootInfo* info, uint32_t rank, HcclComm* out) {
    if (size > kMaxRanks || rank >= size)
        return static_cast<HcclResult>(npu_sim_error(HCCL_E_PARA, "HcclCommInitRootInfo: rank %u of %u (at most %u)", rank, size, kMaxRanks));
    const size_t bytes = sizeof(Shared) + size * kChunk + size * size * sizeof(Channel);
    int fd = shm_open(info->internal, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)))
        return static_cast<HcclResult>(npu_sim_error(HCCL_E_SYSCALL, "HcclCommInitRootInfo: %s: %s", info->internal, strerror(errno)));
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (base == MAP_FAILED)
        return static_cast<HcclResult>(npu_sim_error(HCCL_E_MEMORY, "HcclCommInitRootInfo: no %zu bytes of shared memory", bytes));
    auto* c = new Communicator{size, rank, info->internal, static_cast<char*>(base), bytes};
    c->shared()->pids[rank] = getpid();
    int e = barrier(*c, "HcclCommInitRootInfo");
    if (rank == 0 || e) shm_unlink(info->internal);
    *out = c;
    return static_cast<HcclResult>(e);
}
EXPORT HcclResult HcclCommInitRootInfoConfig(uint32_t size, const HcclRootInfo* info, uint32_t rank, const HcclCommConfig*, HcclComm* out) {
    return HcclCommInitRootInfo(size, info, rank, out);
}
EXPORT HcclResult HcclCommDestroy(HcclComm comm) {
    Communicator* c = static_cast<Communicator*>(comm);
    c->shared()->pids[c->rank] = 0;
    munmap(c->base, c->bytes);
    delete c;
    return HCCL_SUCCESS;
}
EXPORT HcclResult HcclGetCommAsyncError(HcclComm, HcclResult* error) {
    *error = HCCL_SUCCESS;
    return HCCL_SUCCESS;
}
EXPORT HcclResult HcclGetCommName(HcclComm comm, char* name) {
    snprintf(name, COMM_NAME_MAX_LENGTH, "%s", of(comm).name.c_str() + 1);
    return HCCL_SUCCESS;
}
EXPORT HcclResult HcclSetConfig(HcclConfig, HcclConfigValue) { return HCCL_SUCCESS; }
EXPORT HcclResult HcclGetRankSize(HcclComm comm, uint32_t* size) {
    *size = of(comm).size;
    return HCCL_SUCCESS;
}
EXPORT HcclResult HcclGetRankId(HcclComm comm, uint32_t* rank) {
    *rank = of(comm).rank;
    return HCCL_SUCCESS;
}

// ------------------------------------------------------------------------------------ collectives
EXPORT HcclResult HcclAllReduce(void* send, void* receive, uint64_t count, HcclDataType t, HcclReduceOp op, HcclComm comm, aclrtStream stream) {
    if (int e = check_reduction("HcclAllReduce", t, op)) return static_cast<HcclResult>(e);
    const size_t bytes = count * element_bytes(t);
    return submit("HcclAllReduce", stream, {{send, bytes, 0}, {receive, bytes, 1}}, [=] {
        if (int e = agree(of(comm), intent("HcclAllReduce", count, t, op))) return e;
        return all_reduce(of(comm), "HcclAllReduce", static_cast<char*>(send), static_cast<char*>(receive), count, t, op);
    });
}
EXPORT HcclResult HcclReduce(void* send, void* receive, uint64_t count, HcclDataType t, HcclReduceOp op, uint32_t root, HcclComm comm,
                             aclrtStream stream) {
    if (int e = check_reduction("HcclReduce", t, op)) return static_cast<HcclResult>(e);
    const size_t bytes = count * element_bytes(t);
    const bool mine = of(comm).rank == root;
    std::vector<NpuSimAccess> accesses = {{send, bytes, 0}};
    if (mine) accesses.push_back({receive, bytes, 1});
    return submit("HcclReduce", stream, accesses, [=] {
        if (int e = agree(of(comm), intent("HcclReduce", count, t, op, static_cast<int>(root)))) return e;
        return all_reduce(of(comm), "HcclReduce", static_cast<char*>(send), mine ? static_cast<char*>(receive) : nullptr, count, t, op);
    });
}
EXPORT HcclResult HcclBroadcast(void* buffer, uint64_t count, HcclDataType t, uint32_t root, HcclComm comm, aclrtStream stream) {
    const size_t bytes = count * element_bytes(t);
    return submit("HcclBroadcast", stream, {{buffer, bytes, of(comm).rank == root ? 0u : 1u}}, [=] {
        if (int e = agree(of(comm), intent("HcclBroadcast", count, t, -1, static_cast<int>(root)))) return e;
        return broadcast(of(comm), "HcclBroadcast", static_cast<char*>(buffer), bytes, root);
    });
}
EXPORT HcclResult HcclAllGather(void* send, void* receive, uint64_t count, HcclDataType t, HcclComm comm, aclrtStream stream) {
    const size_t bytes = count * element_bytes(t);
    const uint32_t size = of(comm).size;
    return submit("HcclAllGather", stream, {{send, bytes, 0}, {receive, bytes * size, 1}}, [=] {
        if (int e = agree(of(comm), intent("HcclAllGather", count, t))) return e;
        return exchange(of(comm), "HcclAllGather", static_cast<char*>(send), {{0, bytes}}, true, static_cast<char*>(receive), even(size, bytes));
    });
}
EXPORT HcclResult HcclReduceScatter(void* send, void* receive, uint64_t count, HcclDataType t, HcclReduceOp op, HcclComm comm, aclrtStream stream) {
    if (int e = check_reduction("HcclReduceScatter", t, op)) return static_cast<HcclResult>(e);
    const size_t bytes = count * element_bytes(t);
    const uint32_t size = of(comm).size, rank = of(comm).rank;
    return submit("HcclReduceScatter", stream, {{send, bytes * size, 0}, {receive, bytes, 1}}, [=] {
        if (int e = agree(of(comm), intent("HcclReduceScatter", count, t, op))) return e;
        for (uint32_t r = 0; r < size; r++)
            if (int e = all_reduce(of(comm), "HcclReduceScatter", static_cast<char*>(send) + r * bytes,
                                   r == rank ? static_cast<char*>(receive) : nullptr, count, t, op)) return e;
        return 0;
    });
}
EXPORT HcclResult HcclScatter(void* send, void* receive, uint64_t count, HcclDataType t, uint32_t root, HcclComm comm, aclrtStream stream) {
    const size_t bytes = count * element_bytes(t);
    const uint32_t size = of(comm).size, rank = of(comm).rank;
    std::vector<NpuSimAccess> accesses = {{receive, bytes, 1}};
    if (rank == root) accesses.push_back({send, bytes * size, 0});
    return submit("HcclScatter", stream, accesses, [=] {
        if (int e = agree(of(comm), intent("HcclScatter", count, t, -1, static_cast<int>(root)))) return e;
        Bytes in(size, {0, 0});
        in[root] = {0, bytes};
        return exchange(of(comm), "HcclScatter", static_cast<char*>(send), rank == root ? even(size, bytes) : Bytes(size, {0, 0}), false,
                        static_cast<char*>(receive), in);
    });
}
EXPORT HcclResult HcclAlltoAll(const void* send, uint64_t send_count, HcclDataType send_type, const void* receive, uint64_t receive_count,
                               HcclDataType receive_type, HcclComm comm, aclrtStream stream) {
    const size_t out = send_count * element_bytes(send_type), in = receive_count * element_bytes(receive_type);
    const uint32_t size = of(comm).size;
    return submit("HcclAlltoAll", stream, {{send, out * size, 0}, {receive, in * size, 1}}, [=] {
        if (int e = agree(of(comm), intent("HcclAlltoAll", send_count, send_type))) return e;
        return exchange(of(comm), "HcclAlltoAll", static_cast<const char*>(send), even(size, out), false,
                        static_cast<char*>(const_cast<void*>(receive)), even(size, in));
    });
}
EXPORT HcclResult HcclAlltoAllV(const void* send, const void* send_counts, const void* send_offsets, HcclDataType send_type, const void* receive,
                                const void* receive_counts, const void* receive_offsets, HcclDataType receive_type, HcclComm comm,
                                aclrtStream stream) {
    const uint32_t size = of(comm).size;
    Bytes out = uneven(size, send_counts, send_offsets, element_bytes(send_type));
    Bytes in = uneven(size, receive_counts, receive_offsets, element_bytes(receive_type));
    return submit("HcclAlltoAllV", stream, {{send, span(out), 0}, {receive, span(in), 1}}, [=] {
        if (int e = agree(of(comm), intent("HcclAlltoAllV", 0, send_type))) return e;
        return exchange(of(comm), "HcclAlltoAllV", static_cast<const char*>(send), out, false,
                        static_cast<char*>(const_cast<void*>(receive)), in);
    });
}
EXPORT HcclResult HcclSend(void* buffer, uint64_t count, HcclDataType t, uint32_t to, HcclComm comm, aclrtStream stream) {
    const size_t bytes = count * element_bytes(t);
    if (to >= of(comm).size) return static_cast<HcclResult>(npu_sim_error(HCCL_E_PARA, "HcclSend: destRank %u of %u", to, of(comm).size));
    return submit("HcclSend", stream, {{buffer, bytes, 0}}, [=] { return send_bytes(of(comm), static_cast<char*>(buffer), bytes, to); });
}
EXPORT HcclResult HcclRecv(void* buffer, uint64_t count, HcclDataType t, uint32_t from, HcclComm comm, aclrtStream stream) {
    const size_t bytes = count * element_bytes(t);
    if (from >= of(comm).size) return static_cast<HcclResult>(npu_sim_error(HCCL_E_PARA, "HcclRecv: srcRank %u of %u", from, of(comm).size));
    return submit("HcclRecv", stream, {{buffer, bytes, 1}}, [=] { return receive_bytes(of(comm), static_cast<char*>(buffer), bytes, from); });
}
// Sends first, then receives would deadlock beyond one message: both sides advance piece by piece.
EXPORT HcclResult HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t n, HcclComm comm, aclrtStream stream) {
    std::vector<HcclSendRecvItem> all(items, items + n);
    std::vector<NpuSimAccess> accesses;
    for (const HcclSendRecvItem& i : all) accesses.push_back({i.buf, i.count * element_bytes(i.dataType), i.sendRecvType == HCCL_RECV});
    return submit("HcclBatchSendRecv", stream, accesses, [=] {
        Communicator& c = of(comm);
        std::vector<size_t> done(all.size(), 0);
        auto advance = [&] {
            bool moved = false;
            std::vector<std::pair<uint32_t, int>> busy;  // one message at a time per peer and direction, in order
            for (size_t k = 0; k < all.size(); k++) {
                const HcclSendRecvItem& i = all[k];
                const size_t bytes = i.count * element_bytes(i.dataType);
                std::pair<uint32_t, int> lane = {i.remoteRank, static_cast<int>(i.sendRecvType)};
                if (done[k] >= bytes || std::find(busy.begin(), busy.end(), lane) != busy.end()) continue;
                busy.push_back(lane);
                const bool sends = i.sendRecvType == HCCL_SEND;
                Channel* channel = sends ? c.channel(c.rank, i.remoteRank) : c.channel(i.remoteRank, c.rank);
                if ((channel->full != 0) == sends) continue;
                const size_t piece = std::min(kMessage, bytes - done[k]);
                char* buffer = static_cast<char*>(i.buf) + done[k];
                if (sends) memcpy(channel->data, buffer, piece);
                else memcpy(buffer, channel->data, piece);
                channel->full = sends;
                done[k] += piece;
                moved = true;
            }
            return moved;
        };
        auto finished = [&] {
            for (size_t k = 0; k < all.size(); k++)
                if (done[k] < all[k].count * element_bytes(all[k].dataType)) return false;
            return true;
        };
        while (!finished())
            if (int e = wait_until(c, "HcclBatchSendRecv", advance)) return e;
        return 0;
    });
}
EXPORT HcclResult HcclBarrier(HcclComm comm, aclrtStream stream) {
    return submit("HcclBarrier", stream, {}, [=] { return agree(of(comm), intent("HcclBarrier", 0, HCCL_DATA_TYPE_INT8)); });
}
