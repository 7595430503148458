"""One line that names a crash, the same for the same crash each time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from harness.oops.pattern import Pattern
from harness.oops.text import sanitize

TITLE_CHARS: Final = 160

_VOLATILE: Final = (
    (re.compile(r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?(?: \[\w+\])?"), ""),
    (re.compile(r"\b0x[0-9a-f]+\b|\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b"), "ADDR"),
    (re.compile(r"\b(?:CPU|cpu) ?#?\d+"), "CPU"),
    (re.compile(r"(?<![\w.])(?<!\w-)\d+(?:[.:/]\d+)*(?!\w)|(?<=[:/])\d+(?!\w)"), "N"),
)
_DANGLING: Final = re.compile(r"(?: (?:in|at|of)|[:,])+$")

_SYMBOL: Final = r"(?P<function>[A-Za-z_][\w.#/-]*)(?: \[\w+\])?\+0x[0-9a-f]+"
_LINE_START: Final = re.compile(r"(?:.*?\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])?|\(XEN\)(?: \[[\d .:-]+\])?)? *")
# Where the CPU was: RIP, pc, PC is at, NIP, epc. User space has a number in place of the symbol.
_POINTER: Final = re.compile(
    r"(?:E?IP: +|RIP: +[0-9a-f]{4}:(?: *\[<[0-9a-f]+>\] *)*|(?:pc|epc) : (?:\[<[0-9a-f]+>\] )?|E?IP is at |PC is at "
    r"|NIP +(?:\[[0-9a-f]+\] )?|PC: +[0-9a-f]+ )" + _SYMBOL
)
_FRAME: Final = re.compile(
    r"(?:\[<?[0-9a-f]{4,16}>?\] *){0,2}(?:[RFS] +)?" + _SYMBOL + r"(?!.*\(unreliable\))",
)

# Functions that find, report, wait, lock or copy on behalf of the one that is of interest. Leading underscores do not
# count.
_HELPERS: Final = (
    *("bug", "context_switch", "die", "down", "kfree", "kvfree", "kzfree", "memchr", "memcmp", "memcpy"),
    *("memmove", "memset", "might_resched", "object_err", "panic", "schedule", "strcmp", "strcpy"),
    *("strlcpy", "strlen", "strncmp", "strncpy", "strnlen", "strscpy", "switch_to", "usercopy_abort"),
    *("wait_woken", "warn"),
)
_HELPER_PREFIXES: Final = (
    *("apic_timer", "arch_cpu_idle", "arch_trigger", "asan_", "asm_", "bad_area", "bad_page", "bit_wait"),
    *("call_rwsem", "cancel_work", "check_cpu_stall", "check_heap_object", "check_memory_region", "check_object"),
    *("check_preemption", "check_region", "cpu_startup_entry", "csd_lock", "debug_check", "debug_object"),
    *("debug_print", "debug_smp", "debug_spin", "default_idle", "die_", "do_idle", "do_invalid_op"),
    *("do_kernel_fault", "do_page_fault", "do_raw_", "do_syscall", "do_trap", "do_wait", "down_", "dump_"),
    *("el0", "el1", "entry_", "exc_", "fatal_trap", "finish_wait", "flush_work", "fortify_"),
    *("free_to_partial", "handle_bug", "hrtimer_interrupt", "hrtimer_run", "invoke_syscall", "io_schedule"),
    *("kasan_", "kcsan_", "kfence_", "kmem_cache_", "kmsan_", "ldsem_down", "list_add", "list_del"),
    *("local_apic_timer", "lock_acquire", "lock_downgrade", "lock_release", "lockdep_", "look_up_lock_class"),
    *("might_", "msan_", "mutex_lock", "mutex_remove_waiter", "native_halt", "native_queued_"),
    *("native_safe_halt", "nmi_", "no_context", "oops_", "osq_lock", "out_of_line_wait", "page_fault_oops"),
    *("preempt_schedule", "print_", "pv_queued_", "queued_", "raw_callee", "raw_read", "raw_spin", "raw_write"),
    *("rb_erase", "rb_first", "rb_insert", "rb_next", "rcu_check_callbacks", "rcu_dump", "rcu_gp_kthread"),
    *("rcu_lockdep", "rcu_print", "rcu_sched_clock", "read_word_at_a_time", "refcount_", "register_lock_class"),
    *("report_bug", "ret_from", "rt_mutex", "run_hrtimer", "rwsem_", "sanitizer_cov", "sched_show"),
    *("schedule_bug", "schedule_hrtimeout", "schedule_idle", "schedule_preempt", "schedule_timeout", "show_"),
    *("show_execution_state", "skb_over_panic", "skb_panic", "skb_under_panic", "slab_", "smp_apic"),
    *("smp_call_function", "spin_bug", "spin_dump", "stack_trace", "start_secondary", "system_call", "sysvec_"),
    *("task_tick", "this_cpu_preempt_check", "tick_", "trigger_", "tsan_", "ubsan_", "update_process_times"),
    *("wait_for_", "wait_on_", "warn_slowpath", "watchdog_", "x86_indirect", "xen_hypercall"),
)
# Where a source tree was built differs from host to host; a path begins at the tree's top.
_TREE: Final = re.compile(
    r"^(?:/.*?/|\./)(?=(?:arch|block|common|crypto|drivers|fs|include|init|io_uring|ipc|kernel|lib|mm|net|security"
    r"|sound|virt|xen)/)"
)


def compose(pattern: Pattern, groups: Mapping[str, str], lines: Sequence[str]) -> str:
    """The title of a report.

    :param pattern: the signature that matched.
    :param groups: what its regex captured.
    :param lines: the report's text so far, the line that matched included; the more of it, the better the title.
    """
    values = defaultdict(str, {name: text for name, text in groups.items() if text})
    if pattern.detail is not None:
        match = pattern.detail.search("\n".join(lines))
        if match is not None:
            values.update({name: text for name, text in match.groupdict("").items() if text})
    values["detail"] = _stable(values["detail"])
    for file in ("file", "new_file"):
        values[file] = _TREE.sub("", values[file])
    title = " ".join(pattern.title.format_map(values).split())
    title = _DANGLING.sub("", title)
    if pattern.located:
        title += _place(values, lines)
    return sanitize(title)[:TITLE_CHARS].strip()


def _place(values: Mapping[str, str], lines: Sequence[str]) -> str:
    """Where it happened: the function, or else the file."""
    named = _function_name(values["function"] or values["new_function"])
    if not named or _is_helper(named):
        named = _culprit(lines) or named
    if named:
        return f" in {named}"
    file = values["file"] or values["new_file"]
    return f" at {file}" if file else ""


def _culprit(lines: Sequence[str]) -> str:
    """The first function in registers and call traces that is not a helper.

    Failing that, the helper in which the CPU was; empty when there is neither.
    """
    helper = ""
    for line in lines:
        start = _LINE_START.match(line)
        begin = 0 if start is None else start.end()
        pointer = _POINTER.match(line, begin)
        match = pointer or _FRAME.match(line, begin)
        if match is None:
            continue
        name = _function_name(match["function"])
        if not _is_helper(name):
            return name
        if pointer is not None:
            helper = helper or name
    return helper


def _function_name(symbol: str) -> str:
    """Without what the compiler or Xen adds: ``foo.constprop.0`` and ``drivers/x.c#foo`` are ``foo``."""
    return symbol.rpartition("#")[2].partition(".")[0]


def _is_helper(function: str) -> bool:
    name = function.lstrip("_")
    return name in _HELPERS or name.startswith(_HELPER_PREFIXES)


def _stable(text: str) -> str:
    """Free text without what differs from one run to the next: addresses, numbers, offsets in functions."""
    for volatile, replacement in _VOLATILE:
        text = volatile.sub(replacement, text)
    return text
