// libascendcl.so, part 3: streams, events, and graphs (capture, replay, update of task groups).
//
// Work runs at once in the thread that submits it, in the order of submission; races between
// streams therefore never show. The exception is a graph that waits for an event from outside:
// its replay runs in a worker thread, so that the caller can go on and record that event, as on
// the device. Whatever is submitted to that stream next waits for the worker.
//
// While a stream captures, work is recorded AND executed: the caller may compute with the results
// of a captured operator (shapes, and values in the simulated kernels), which a device that only
// records could not offer. What a replay does is exactly what was recorded, on the same addresses.
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "internal.h"

namespace npu_sim {
namespace {

using Clock = std::chrono::steady_clock;

struct Event {
    uint32_t flags;
    Clock::time_point time = Clock::now();
    bool recorded = false;            // meaningful for external events
    struct Graph* graph = nullptr;    // the capture it was recorded in, until that ends
};

struct Task {
    std::string name;
    int (*run)(void*);
    void (*drop)(void*);
    void* state;
    Task(const NpuSimTask& t) : name(t.name), run(t.run), drop(t.drop), state(t.state) {}
    Task(const Task&) = delete;
    ~Task() { if (drop) drop(state); }
};

// Tasks that an update replaces as a whole: one operator that needs fresh host arguments.
struct Group {
    struct Graph* graph = nullptr;
    std::vector<std::shared_ptr<Task>> tasks;
};

struct Node {
    enum Kind { kTask, kGroup, kRecord, kWait, kReset, kWriteValue, kWaitValue } kind;
    std::shared_ptr<Task> task;
    std::shared_ptr<Group> group;
    Event* event = nullptr;
    volatile uint64_t* word = nullptr;  // of kWriteValue and kWaitValue: 64 bits of device memory
    uint64_t value = 0;
    uint32_t flag = 0;
};

struct Stream {
    int id;
    int device;
    struct Graph* capturing = nullptr;
    Group* updating = nullptr;
    std::vector<std::shared_ptr<Task>> update;  // replaces updating->tasks at the end of the update
    std::shared_ptr<Group> open_group;          // of a capture
    int pending = 0;                            // replays in the worker
};

struct Graph {
    Stream* origin;
    aclmdlRICaptureMode mode;
    std::thread::id thread;
    std::vector<Node> nodes;
    std::vector<std::shared_ptr<Group>> groups;
    bool waits = false;  // has a wait for an external event
    uint32_t id;
};

// Never destroyed: the worker still waits for g_changed when the process ends, and a condition
// variable that is waited for cannot be destroyed.  No function of a task is called while g_mutex is
// held: it may want the Python interpreter, whose holder may want g_mutex.
std::recursive_mutex& g_mutex = *new std::recursive_mutex;                       // everything below
std::condition_variable_any& g_changed = *new std::condition_variable_any;       // an event was recorded, a replay ended
std::set<Stream*>& g_streams = *new std::set<Stream*>;
std::set<Graph*>& g_captures = *new std::set<Graph*>;                            // in progress
std::string& g_background_message = *new std::string;
std::atomic<int> g_ids{1};
int g_background_error = 0;
thread_local bool t_in_worker = false;
thread_local bool t_quiet = false;      // the execution during capture is not recorded
thread_local aclmdlRICaptureMode t_mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;

// Null stands for the device's default stream.
Stream* stream_of(aclrtStream s) {
    static Stream* defaults[64];
    if (s) return static_cast<Stream*>(s);
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    Stream*& d = defaults[current_device()];
    if (!d) d = new Stream{0, current_device()};
    return d;
}

// Kernels of this simulation are partly Python: a thread that waits must not hold the interpreter.
class WithoutInterpreter {
  public:
    WithoutInterpreter() {
        static auto check = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
        static auto initialized = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
        static auto save = reinterpret_cast<void* (*)()>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"));
        if (check && initialized && initialized() && check()) saved_ = save();
    }
    ~WithoutInterpreter() {
        static auto restore = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"));
        if (saved_) restore(saved_);
    }

  private:
    void* saved_ = nullptr;
};

template <class Condition>
bool wait_for(std::unique_lock<std::recursive_mutex>& lock, Condition condition) {
    // In slices: a copy may write a word that is waited for without telling anybody.
    const auto end = Clock::now() + std::chrono::duration<double>(wait_limit());
    while (!g_changed.wait_for(lock, std::chrono::milliseconds(20), condition))
        if (Clock::now() > end) return false;
    return true;
}

// The condition of aclrtValueWait, by its flag.
bool holds(uint64_t found, uint64_t wanted, uint32_t flag) {
    switch (flag) {
        case ACL_STREAM_WAIT_VALUE_GEQ: return static_cast<int64_t>(found - wanted) >= 0;
        case ACL_STREAM_WAIT_VALUE_EQ: return found == wanted;
        case ACL_STREAM_WAIT_VALUE_AND: return (found & wanted) != 0;
        default: return ~(found | wanted) != 0;  // ACL_STREAM_WAIT_VALUE_NOR
    }
}

int waited_too_long() {
    return npu_sim_error(ACL_ERROR_RT_WAIT_TIMEOUT,
                         "a stream or graph waited %.0f s for an event that nobody recorded: was the graph updated after its "
                         "last replay? (NPU_SIM_TIMEOUT)", wait_limit());
}

int wait_value(volatile uint64_t* word, uint64_t value, uint32_t flag) {
    std::unique_lock<std::recursive_mutex> lock(g_mutex);
    return wait_for(lock, [=] { return holds(*word, value, flag); }) ? 0 : waited_too_long();
}

void write_value(volatile uint64_t* word, uint64_t value) {
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    *word = value;
    g_changed.notify_all();
}

int run_task(Task& task) { return task.run(task.state); }

int replay(Graph* graph) {
    for (Node& node : graph->nodes) {
        int code = 0;
        switch (node.kind) {
            case Node::kTask:
                code = run_task(*node.task);
                break;
            case Node::kGroup: {
                std::vector<std::shared_ptr<Task>> tasks;
                {
                    std::lock_guard<std::recursive_mutex> lock(g_mutex);
                    tasks = node.group->tasks;
                }
                for (auto& task : tasks)
                    if ((code = run_task(*task))) break;
                break;
            }
            case Node::kRecord:
            case Node::kReset: {
                std::lock_guard<std::recursive_mutex> lock(g_mutex);
                node.event->recorded = node.kind == Node::kRecord;
                node.event->time = Clock::now();
                g_changed.notify_all();
                break;
            }
            case Node::kWait: {
                std::unique_lock<std::recursive_mutex> lock(g_mutex);
                Event* event = node.event;
                if (!wait_for(lock, [event] { return event->recorded; })) code = waited_too_long();
                break;
            }
            case Node::kWriteValue:
                write_value(node.word, node.value);
                break;
            case Node::kWaitValue:
                code = wait_value(node.word, node.value, node.flag);
                break;
        }
        if (code) return code;
    }
    return 0;
}

// One worker for all streams: replays in the order they were asked for.
struct Job {
    Graph* graph;
    Stream* stream;
};
std::deque<Job>* g_jobs;
void worker() {
    t_in_worker = true;
    for (;;) {
        Job job;
        {
            std::unique_lock<std::recursive_mutex> lock(g_mutex);
            g_changed.wait(lock, [] { return !g_jobs->empty(); });
            job = g_jobs->front();
        }
        set_current_device(job.stream->device);
        int code = replay(job.graph);
        std::lock_guard<std::recursive_mutex> lock(g_mutex);
        if (code && !g_background_error) {
            g_background_error = code;
            g_background_message = aclGetRecentErrMsg();
        }
        g_jobs->pop_front();
        job.stream->pending--;
        g_changed.notify_all();
    }
}

// The error of a replay that ran in the background, reported by the next call that waits for it.
int background_error() {
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    if (!g_background_error) return 0;
    int code = g_background_error;
    g_background_error = 0;
    return npu_sim_error(code, "%s", g_background_message.c_str());
}

}  // namespace

void settle(aclrtStream s) {
    Stream* stream = stream_of(s);
    if (t_in_worker || !stream->pending) return;
    WithoutInterpreter released;
    std::unique_lock<std::recursive_mutex> lock(g_mutex);
    g_changed.wait(lock, [stream] { return !stream->pending; });
}

void settle_all() {
    if (t_in_worker) return;
    {
        std::lock_guard<std::recursive_mutex> lock(g_mutex);
        if (!g_jobs || g_jobs->empty()) return;
    }
    WithoutInterpreter released;
    std::unique_lock<std::recursive_mutex> lock(g_mutex);
    g_changed.wait(lock, [] { return g_jobs->empty(); });
}

int refuse_in_capture(const char* call) {
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    for (Graph* graph : g_captures) {
        bool mine = graph->thread == std::this_thread::get_id();
        if (t_mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED || graph->mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) continue;
        if (mine || graph->mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL)
            return npu_sim_error(ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT,
                                 "%s waits for the device, which is not possible while a graph is captured", call);
    }
    return 0;
}

}  // namespace npu_sim

using namespace npu_sim;

EXPORT int npu_sim_quiet() { return t_quiet; }

EXPORT int npu_sim_stream_state(void* s) {
    Stream* stream = stream_of(s);
    return stream->updating ? 2 : stream->capturing ? 1 : 0;
}

EXPORT int npu_sim_ready(void* s) {
    settle(s);
    return background_error();
}

EXPORT int npu_sim_submit(void* s, const NpuSimTask* given) {
    Stream* stream = stream_of(s);
    auto task = std::make_shared<Task>(*given);
    if (stream->updating) {
        stream->update.push_back(task);
        return 0;
    }
    if (stream->capturing) {
        {
            std::lock_guard<std::recursive_mutex> lock(g_mutex);
            if (stream->open_group) stream->open_group->tasks.push_back(task);
            else stream->capturing->nodes.push_back({Node::kTask, task});
        }
        if (given->already_ran) return 0;
        t_quiet = true;
        int code = run_task(*task);
        t_quiet = false;
        return code;
    }
    if (given->already_ran) return 0;
    if (int code = npu_sim_ready(s)) return code;
    return run_task(*task);
}

// ---------------------------------------------------------------------------------------- streams
static aclError create_stream(aclrtStream* out) {
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    Stream* stream = new Stream{g_ids++, current_device()};
    g_streams.insert(stream);
    *out = stream;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtCreateStream(aclrtStream* out) { return create_stream(out); }
EXPORT aclError aclrtCreateStreamWithConfig(aclrtStream* out, uint32_t, uint32_t) { return create_stream(out); }
EXPORT aclError aclrtDestroyStream(aclrtStream s) {
    settle(s);
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    g_streams.erase(static_cast<Stream*>(s));
    delete static_cast<Stream*>(s);
    return ACL_SUCCESS;
}
EXPORT aclError aclrtDestroyStreamForce(aclrtStream s) { return aclrtDestroyStream(s); }
EXPORT aclError aclrtSynchronizeStream(aclrtStream s) {
    if (stream_of(s)->capturing)
        return npu_sim_error(ACL_ERROR_RT_STREAM_CAPTURED, "aclrtSynchronizeStream: the stream captures a graph");
    settle(s);
    return background_error();
}
EXPORT aclError aclrtSynchronizeStreamWithTimeout(aclrtStream s, int32_t) { return aclrtSynchronizeStream(s); }
EXPORT aclError aclrtSynchronizeDevice() {
    if (aclError e = refuse_in_capture("aclrtSynchronizeDevice")) return e;
    settle_all();
    return background_error();
}
EXPORT aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { return aclrtSynchronizeDevice(); }
EXPORT aclError aclrtStreamQuery(aclrtStream s, aclrtStreamStatus* status) {
    *status = stream_of(s)->pending ? ACL_STREAM_STATUS_NOT_READY : ACL_STREAM_STATUS_COMPLETE;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtStreamGetId(aclrtStream s, int32_t* id) {
    *id = stream_of(s)->id;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return ACL_SUCCESS; }
EXPORT aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t) { return ACL_SUCCESS; }
EXPORT aclError aclrtGetStreamOverflowSwitch(aclrtStream, uint32_t* flag) {
    *flag = 0;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*) { return ACL_SUCCESS; }
EXPORT aclError aclrtProcessReport(int32_t) { return ACL_SUCCESS; }
EXPORT aclError aclrtSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }
EXPORT aclError aclrtUnSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }

struct HostCall {
    void (*function)(void*);
    void* argument;
};
static aclError submit_host_call(aclrtStream s, void (*function)(void*), void* argument) {
    auto run = [](void* state) {
        HostCall* call = static_cast<HostCall*>(state);
        call->function(call->argument);
        return 0;
    };
    NpuSimTask task = {"aclrtLaunchHostFunc", run, [](void* state) { delete static_cast<HostCall*>(state); },
                       new HostCall{function, argument}, 0};
    return npu_sim_submit(s, &task);
}
EXPORT aclError aclrtLaunchHostFunc(aclrtStream s, void (*function)(void*), void* argument) {
    return submit_host_call(s, function, argument);
}
EXPORT aclError aclrtLaunchCallback(aclrtCallback function, void* argument, aclrtCallbackBlockType, aclrtStream s) {
    return submit_host_call(s, function, argument);
}

// ----------------------------------------------------------------------------------------- events
EXPORT aclError aclrtCreateEventWithFlag(aclrtEvent* out, uint32_t flags) {
    *out = new Event{flags};
    return ACL_SUCCESS;
}
EXPORT aclError aclrtCreateEventExWithFlag(aclrtEvent* out, uint32_t flags) { return aclrtCreateEventWithFlag(out, flags); }
EXPORT aclError aclrtDestroyEvent(aclrtEvent e) {
    settle_all();
    delete static_cast<Event*>(e);
    return ACL_SUCCESS;
}
static void append(Graph* graph, Node::Kind kind, Event* event) {
    Node node{kind};
    node.event = event;
    graph->nodes.push_back(node);
    if (kind == Node::kWait) graph->waits = true;
}
EXPORT aclError aclrtRecordEvent(aclrtEvent e, aclrtStream s) {
    Stream* stream = stream_of(s);
    Event* event = static_cast<Event*>(e);
    if (!stream->capturing) settle(s);
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    if (stream->capturing) {
        if (event->flags & ACL_EVENT_EXTERNAL) append(stream->capturing, Node::kRecord, event);
        else event->graph = stream->capturing;
        return ACL_SUCCESS;
    }
    event->graph = nullptr;
    event->recorded = true;
    event->time = Clock::now();
    g_changed.notify_all();
    return ACL_SUCCESS;
}
EXPORT aclError aclrtResetEvent(aclrtEvent e, aclrtStream s) {
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    Stream* stream = stream_of(s);
    Event* event = static_cast<Event*>(e);
    if (stream->capturing) append(stream->capturing, Node::kReset, event);
    else event->recorded = false;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtStreamWaitEvent(aclrtStream s, aclrtEvent e) {
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    Stream* stream = stream_of(s);
    Event* event = static_cast<Event*>(e);
    if (event->flags & ACL_EVENT_EXTERNAL) {
        if (stream->capturing) append(stream->capturing, Node::kWait, event);
        return ACL_SUCCESS;
    }
    // A wait on an event of a capture draws the waiting stream into that capture.
    if (event->graph && g_captures.count(event->graph)) stream->capturing = event->graph;
    return ACL_SUCCESS;
}
// Words of device memory that are written and waited for in stream order.  torch_npu builds the
// external events of graphs on them.
static aclError check_word(const char* call, void* word) {
    if (npu_sim_is_device(word, 8) && reinterpret_cast<uintptr_t>(word) % 8 == 0) return ACL_SUCCESS;
    return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "%s: %p is not an aligned word of device memory", call, word);
}
static bool append_value(aclrtStream s, Node::Kind kind, void* word, uint64_t value, uint32_t flag) {
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    Graph* graph = stream_of(s)->capturing;
    if (!graph) return false;
    Node node{kind};
    node.word = static_cast<volatile uint64_t*>(word);
    node.value = value;
    node.flag = flag;
    graph->nodes.push_back(node);
    if (kind == Node::kWaitValue) graph->waits = true;
    return true;
}
EXPORT aclError aclrtValueWrite(void* word, uint64_t value, uint32_t flag, aclrtStream s) {
    if (aclError e = check_word("aclrtValueWrite", word)) return e;
    if (append_value(s, Node::kWriteValue, word, value, flag)) return ACL_SUCCESS;
    settle(s);
    write_value(static_cast<volatile uint64_t*>(word), value);
    return ACL_SUCCESS;
}
EXPORT aclError aclrtValueWait(void* word, uint64_t value, uint32_t flag, aclrtStream s) {
    if (aclError e = check_word("aclrtValueWait", word)) return e;
    if (append_value(s, Node::kWaitValue, word, value, flag)) return ACL_SUCCESS;
    settle(s);
    WithoutInterpreter released;
    return wait_value(static_cast<volatile uint64_t*>(word), value, flag);
}
EXPORT aclError aclrtSynchronizeEvent(aclrtEvent e) {
    Event* event = static_cast<Event*>(e);
    {
        std::lock_guard<std::recursive_mutex> lock(g_mutex);
        if (event->graph && g_captures.count(event->graph))
            return npu_sim_error(ACL_ERROR_RT_EVENT_CAPTURED, "aclrtSynchronizeEvent: the event belongs to a graph being captured");
    }
    return background_error();
}
EXPORT aclError aclrtQueryEventStatus(aclrtEvent, aclrtEventRecordedStatus* status) {
    *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus* status) {
    *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent start, aclrtEvent end) {
    *milliseconds = std::chrono::duration<float, std::milli>(static_cast<Event*>(end)->time - static_cast<Event*>(start)->time).count();
    return ACL_SUCCESS;
}
EXPORT aclError aclrtEventGetTimestamp(aclrtEvent e, uint64_t* microseconds) {
    *microseconds = static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(static_cast<Event*>(e)->time.time_since_epoch()).count());
    return ACL_SUCCESS;
}

// ----------------------------------------------------------------------------------------- graphs
EXPORT aclError aclmdlRICaptureBegin(aclrtStream s, aclmdlRICaptureMode mode) {
    if (!s) return npu_sim_error(ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT, "aclmdlRICaptureBegin: the default stream cannot be captured");
    settle(s);
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    Stream* stream = stream_of(s);
    if (stream->capturing) return npu_sim_error(ACL_ERROR_RT_STREAM_CAPTURED, "aclmdlRICaptureBegin: the stream captures already");
    Graph* graph = new Graph{stream, mode, std::this_thread::get_id()};
    graph->id = static_cast<uint32_t>(g_ids++);
    stream->capturing = graph;
    g_captures.insert(graph);
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRICaptureGetInfo(aclrtStream s, aclmdlRICaptureStatus* status, aclmdlRI* model) {
    Graph* graph = stream_of(s)->capturing;
    *status = graph ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    if (model) *model = graph;
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRICaptureEnd(aclrtStream s, aclmdlRI* model) {
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    Graph* graph = stream_of(s)->capturing;
    if (!graph) return npu_sim_error(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "aclmdlRICaptureEnd: the stream does not capture");
    if (graph->origin != s)
        return npu_sim_error(ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED, "aclmdlRICaptureEnd: another stream began this capture");
    for (Stream* stream : g_streams)
        if (stream->capturing == graph) stream->capturing = nullptr;
    g_captures.erase(graph);
    *model = graph;
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
    std::swap(t_mode, *mode);
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRICaptureTaskGrpBegin(aclrtStream s) {
    Stream* stream = stream_of(s);
    if (!stream->capturing) return npu_sim_error(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "aclmdlRICaptureTaskGrpBegin: the stream does not capture");
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    stream->open_group = std::make_shared<Group>();
    stream->open_group->graph = stream->capturing;
    stream->capturing->groups.push_back(stream->open_group);
    Node node{Node::kGroup};
    node.group = stream->open_group;
    stream->capturing->nodes.push_back(node);
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRICaptureTaskGrpEnd(aclrtStream s, aclrtTaskGrp* handle) {
    Stream* stream = stream_of(s);
    if (!stream->open_group) return npu_sim_error(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "aclmdlRICaptureTaskGrpEnd: no task group is open");
    *handle = stream->open_group.get();
    stream->open_group.reset();
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream s, aclrtTaskGrp handle) {
    Stream* stream = stream_of(s);
    if (stream->capturing) return npu_sim_error(ACL_ERROR_RT_STREAM_CAPTURED, "aclmdlRICaptureTaskUpdateBegin: the stream captures a graph");
    stream->updating = static_cast<Group*>(handle);
    stream->update.clear();
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream s) {
    Stream* stream = stream_of(s);
    if (!stream->updating) return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclmdlRICaptureTaskUpdateEnd: no update is open");
    std::vector<std::shared_ptr<Task>> replaced;  // dropped once the lock is given back
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    Group* group = stream->updating;
    stream->updating = nullptr;
    std::string before, after;
    for (auto& task : group->tasks) before += task->name + " ";
    for (auto& task : stream->update) after += task->name + " ";
    // The device can only give a captured kernel new arguments, not put another one in its place.
    if (before != after)
        return npu_sim_error(ACL_ERROR_RT_FEATURE_NOT_SUPPORT_UPDATE_OP,
                             "the update of a task group must submit the tasks that were captured: captured [ %s], now [ %s]",
                             before.c_str(), after.c_str());
    group->tasks.swap(stream->update);
    replaced.swap(stream->update);
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRIExecuteAsync(aclmdlRI model, aclrtStream s) {
    Graph* graph = static_cast<Graph*>(model);
    Stream* stream = stream_of(s);
    if (stream->capturing) return npu_sim_error(ACL_ERROR_RT_STREAM_CAPTURED, "aclmdlRIExecuteAsync: the stream captures a graph");
    if (int code = background_error()) return code;
    if (npu_sim_recording()) npu_sim_record("graph", "replay", nullptr, 0);
    if (!graph->waits) {
        settle(s);
        return replay(graph);
    }
    std::lock_guard<std::recursive_mutex> lock(g_mutex);
    if (!g_jobs) {
        g_jobs = new std::deque<Job>;
        std::thread(worker).detach();
    }
    stream->pending++;
    g_jobs->push_back({graph, stream});
    g_changed.notify_all();
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRIDestroy(aclmdlRI model) {
    settle_all();
    delete static_cast<Graph*>(model);
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRIGetId(aclmdlRI model, uint32_t* id) {
    *id = static_cast<Graph*>(model)->id;
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRIDebugPrint(aclmdlRI model) {
    for (Node& node : static_cast<Graph*>(model)->nodes)
        fprintf(stderr, "%d %s\n", node.kind, node.task ? node.task->name.c_str() : "");
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlRIDebugJsonPrint(aclmdlRI, const char*, uint32_t) {
    return npu_sim_error(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "aclmdlRIDebugJsonPrint is not simulated");
}
