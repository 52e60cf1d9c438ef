/* Calls a kernel on the memory of another process: pages come when they are touched, and go back
 * where they have changed.  Arguments: the process, and the address of the kernel's argument. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define MOST_PAGES 65536

extern void kernel(void *argument);

static int memory;
static struct page {
    uintptr_t address;
    char *original;
} pages[MOST_PAGES];
static int count;

static void stop(const char *what, uintptr_t address) {
    char line[128];
    dprintf(2, "%.*s\n", snprintf(line, sizeof line, "%s at %#lx", what, (long)address), line);
    _exit(1);
}

static void fetch(int number, siginfo_t *fault, void *context) {
    uintptr_t address = (uintptr_t)fault->si_addr & ~(uintptr_t)(PAGE - 1);
    if (count == MOST_PAGES)
        stop("too many pages", address);
    int kind = MAP_PRIVATE | MAP_ANONYMOUS, access = PROT_READ | PROT_WRITE;
    void *page = mmap((void *)address, PAGE, access, kind | MAP_FIXED_NOREPLACE, -1, 0);
    char *original = mmap(NULL, PAGE, access, kind, -1, 0);
    if (page != (void *)address || original == MAP_FAILED)
        stop("cannot map a page", address);
    if (pread(memory, page, PAGE, address) != PAGE)
        stop("no memory", address);
    memcpy(original, page, PAGE);
    pages[count++] = (struct page){address, original};
}

/* Only bytes that have changed: others may be changed by the other process meanwhile. */
static void give_back(struct page *page) {
    char *now = (char *)page->address;
    for (int first = 0; first < PAGE; first++) {
        int last = first;
        while (last < PAGE && now[last] != page->original[last])
            last++;
        if (last > first && pwrite(memory, now + first, last - first, page->address + first) < 0)
            stop("cannot write", page->address);
        first = last;
    }
}

int main(int argc, char **argv) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/mem", argv[1]);
    memory = open(path, O_RDWR);
    if (memory < 0)
        stop("cannot open the memory of the process", 0);
    struct sigaction action = {.sa_sigaction = fetch, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    kernel((void *)strtoul(argv[2], NULL, 0));
    for (int i = 0; i < count; i++)
        give_back(&pages[i]);
    return 0;
}
