/* Lets processes that were forked from one share pages again which they wrote to and which are as they were before.

   A call of a Python function counts references up and down again: what it leaves behind is what it found, but the
   kernel has copied the page. Here the pages of the parent become a file in memory, mapped privately. A page of a
   fork that equals the file's is dropped; the next look at it finds the file's.

   Both functions keep the interpreter's lock: only other threads that run without it could write meanwhile, and
   `give_back` does nothing while any other thread runs. Linux only. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define NAME "qnode-fleet"
#define PATH "/memfd:" NAME
#define ENTRIES 512 /* of the kernel's page table that are read at once */
#define PAGE_PRESENT (UINT64_C(1) << 63)
#define PAGE_OF_FILE (UINT64_C(1) << 61)

static char *original; /* the file, as a whole and read-only */

static int write_all(int file, const char *from, size_t size) {
    while (size > 0) {
        ssize_t written = write(file, from, size);
        if (written <= 0)
            return -1;
        from += written;
        size -= (size_t)written;
    }
    return 0;
}

/* share(ranges: list[tuple[int, int]]) -> int: put (address, size) of whole pages into the file; once per process. */
static PyObject *share(PyObject *self, PyObject *ranges) {
    if (original != NULL || !PyList_Check(ranges)) {
        PyErr_SetString(PyExc_RuntimeError, "a list of ranges can be shared once");
        return NULL;
    }
    int file = memfd_create(NAME, MFD_CLOEXEC);
    if (file < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    size_t total = 0;
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(ranges); n++) {
        unsigned long long address, size;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(ranges, n), "KK", &address, &size)) {
            close(file);
            return NULL;
        }
        char *begin = (char *)(uintptr_t)address;
        /* No object may change between the copy and the exchange: no call of Python is in between. */
        if (address % PAGE_BYTES || size % PAGE_BYTES || write_all(file, begin, size) < 0 ||
            mmap(begin, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, (off_t)total) == MAP_FAILED) {
            PyErr_SetFromErrno(PyExc_OSError);
            close(file);
            return NULL;
        }
        total += size;
    }
    if (total > 0) {
        void *whole = mmap(NULL, total, PROT_READ, MAP_SHARED, file, 0);
        if (whole != MAP_FAILED)
            original = whole;
    }
    close(file);
    return PyLong_FromSize_t(total);
}

/* Whether every other thread of this process sleeps; one that waits for the disk may go on at any moment. */
static int others_sleep(void) {
    DIR *tasks = opendir("/proc/self/task");
    if (tasks == NULL)
        return 0;
    long own = syscall(SYS_gettid);
    int sleep = 1;
    struct dirent *task;
    while (sleep && (task = readdir(tasks)) != NULL) {
        char path[64], line[256];
        if (task->d_name[0] == '.' || atol(task->d_name) == own)
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%.20s/stat", task->d_name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t size = file < 0 ? -1 : read(file, line, sizeof line - 1);
        if (file >= 0)
            close(file);
        if (size < 0)
            continue; /* it has ended */
        line[size] = 0;
        char *end = strrchr(line, ')');
        sleep = end != NULL && end[1] == ' ' && end[2] == 'S';
    }
    closedir(tasks);
    return sleep;
}

/* Drop the pages of one mapping that equal the file's; return how many. */
static size_t give_back_mapping(int table, char *begin, char *end, const char *file) {
    uint64_t entries[ENTRIES];
    size_t dropped = 0;
    while (begin < end) {
        size_t count = (size_t)(end - begin) / PAGE_BYTES;
        if (count > ENTRIES)
            count = ENTRIES;
        off_t at = (off_t)((uintptr_t)begin / PAGE_BYTES * sizeof entries[0]);
        ssize_t got = pread(table, entries, count * sizeof entries[0], at);
        if (got != (ssize_t)(count * sizeof entries[0]))
            break;
        for (size_t n = 0; n < count; n++, begin += PAGE_BYTES, file += PAGE_BYTES) {
            int own = (entries[n] & PAGE_PRESENT) && !(entries[n] & PAGE_OF_FILE);
            if (own && memcmp(begin, file, PAGE_BYTES) == 0)
                dropped += madvise(begin, PAGE_BYTES, MADV_DONTNEED) == 0;
        }
    }
    return dropped;
}

/* give_back() -> int | None: the number of pages that are shared again, None while other threads run. */
static PyObject *give_back(PyObject *self, PyObject *unused) {
    if (original == NULL)
        return PyLong_FromLong(0);
    FILE *maps = fopen("/proc/self/maps", "re");
    int table = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    size_t dropped = 0;
    int asleep = maps != NULL && table >= 0 && others_sleep();
    char line[512];
    /* The kernel says what is mapped from the file still: what has been unmapped since may be other memory now. */
    while (asleep && fgets(line, sizeof line, maps) != NULL) {
        uintptr_t begin, end;
        uint64_t offset;
        if (strstr(line, PATH) != NULL &&
            sscanf(line, "%" SCNxPTR "-%" SCNxPTR " rw-p %" SCNx64, &begin, &end, &offset) == 3)
            dropped += give_back_mapping(table, (char *)begin, (char *)end, original + offset);
    }
    if (maps != NULL)
        fclose(maps);
    if (table >= 0)
        close(table);
    if (!asleep)
        Py_RETURN_NONE;
    return PyLong_FromSize_t(dropped);
}

static PyMethodDef methods[] = {
    {"share", share, METH_O, "Make ranges of memory private mappings of one file; return its size."},
    {"give_back", give_back, METH_NOARGS, "Share equal pages again; return how many, None while other threads run."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_pages", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pages(void) { return PyModule_Create(&module); }
