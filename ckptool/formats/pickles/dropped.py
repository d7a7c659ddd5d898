"""Names that a ``__del__`` of Python's, torch's or numpy's asks its own object for.

A class of the user's may be derived from one that has a ``__del__``. It then runs whatever the
pickle put under these names as soon as the object is dropped. The tables are a scan of the sources
of Python 3.11, torch 2.13 and numpy 2.4, which follows the methods that a ``__del__`` calls on its
own object, and the ``__repr__`` that its warning shows. Files have one that is written in C, which
asks for ``closed`` and calls ``close``. A test scans what is installed.
"""

from __future__ import annotations

# Called: methods of the object, and of the file, the process or the lock that it holds.
CALLED = frozenset({
    "_URLopener__unlink", "_checkClosed", "_check_not_closed", "_check_signal", "_chmod",
    "_cleanup", "_close", "_close_conn", "_close_released_fd", "_close_self_pipe", "_commit",
    "_commit_release", "_drop_registry_entry", "_ensure_header_written",
    "_finish_interrupted_release", "_flush_unlocked", "_fpclose", "_free_weak_ref",
    "_handle_exitstatus", "_hold_state", "_init_compression", "_internal_poll",
    "_mark_descriptor_released", "_mark_worker_as_unavailable", "_openhook", "_patchheader",
    "_readline", "_release", "_release_abandoned_holds", "_release_current", "_release_held",
    "_release_thread_holds", "_release_with_fork_tracking", "_remove_reader",
    "_retry_interrupted_release", "_send", "_shutdown_workers", "_soft_lock",
    "_stop_accept_futures", "_suppresses_close_error", "_tearDownAsyncioRunner",
    "_unregister_released_descriptor", "_write_end_record", "_write_form_length", "_write_header",
    "_writemarkers", "acquire", "cleanup", "close", "deregister_handle", "destroy_segment",
    "disable", "flush", "get_debug", "get_resources_dir", "get_write_buffer_size", "is_closed",
    "is_running", "lineno", "nextfile", "release", "remove_signal_handler", "seek", "stop", "sync",
    "tell", "truncate", "unlink", "unregister", "unregister_callback", "write",
})  # fmt: skip

# Methods that end what an object holds, as a ``__del__`` of any library calls them.
ENDING = frozenset({
    "abort", "clean", "clean_up", "close_all", "destroy", "detach", "disconnect", "dispose",
    "finalize", "finish", "free", "kill", "quit", "shutdown", "tear_down", "teardown",
    "terminate", "uninstall", "unload", "unlock",
})  # fmt: skip

# Read: compared, iterated, shown, or asked for methods.
READ_WHEN_DROPPED = frozenset({
    "_Event__eventId", "_Future__log_traceback", "_IOBase__closed", "_URLopener__tempfiles",
    "_accept_futures", "_adpcmstate", "_aifc", "_allowZip64", "_asyncioRunner", "_backup",
    "_backupfilename", "_bakfile", "_buf", "_buffer_size", "_change_notifier", "_child_created",
    "_close_fileobj", "_closed", "_closefd", "_closefp", "_closing", "_compname", "_compress_size",
    "_comptype", "_crc", "_creator_pid", "_csock", "_data_length_pos", "_datalength",
    "_datawritten", "_default_executor", "_destpath", "_didModify", "_dirfile", "_eof_written",
    "_exception", "_execution_trace_running", "_extfileobj", "_fd", "_file", "_filePassed",
    "_fileRefCnt", "_file_size", "_filelineno", "_filename", "_fileno", "_fileobj", "_files",
    "_form_length_pos", "_fp", "_framerate", "_framesize", "_handle", "_headerwritten",
    "_holder_id", "_i_opened_the_file", "_index", "_index_queues", "_inplace", "_io", "_isstdin",
    "_istmpdest", "_lease_run_id_stop", "_lease_this_rank_stop", "_lin2adpcm", "_lin2alaw",
    "_lin2sowt", "_lin2ulaw", "_log_destroy_pending", "_loop", "_markers", "_marklength", "_mmap",
    "_modified", "_nchannels", "_nframes", "_nframes_pos", "_nframeswritten", "_opened", "_os",
    "_output", "_persistent_workers", "_pid", "_pin_memory_thread", "_pin_memory_thread_done_event",
    "_pipe", "_pipes", "_pool", "_proactor", "_proc", "_process_pipe", "_raw", "_rdzv_impl",
    "_read_fut", "_reader", "_ready", "_registered", "_returncode", "_sampwidth", "_save_process",
    "_savestdout", "_scheduled", "_seekable", "_selector", "_self_reading_future",
    "_sharded_tensor_id", "_shutdown", "_signal_handlers", "_singleton_key", "_sock", "_sock_fd",
    "_source_traceback", "_ssnd_length_pos", "_ssock", "_startlineno", "_state", "_thread_holds",
    "_thread_id", "_thread_pending", "_threads", "_tracker", "_transition_lock", "_transport",
    "_waitpid_lock", "_worker_pids_set", "_worker_result_queue", "_workers", "_workers_done_event",
    "_workers_status", "_write_buf", "_write_fut", "_write_lock", "_write_mode", "_writing",
    "_zinfo", "_zip64", "_zipfile", "buffer_elements", "cdata", "child_buffers", "close_called",
    "closed", "comptype", "crc", "delete", "extra_resources_collection", "fd", "fid", "file_obj",
    "filelist", "fileobj", "fp", "lock_file", "myfileobj", "num_instances", "output_file_path",
    "output_file_path_observer", "parent_stream", "pid", "resources_dir", "returncode",
    "segment_names", "sock", "start_dir", "tempcache", "writeback", "zip",
})  # fmt: skip

# Everyday words, which say nothing alone: they count beside one of those above.
READ_BESIDE = frozenset({
    "_active", "_buffer", "_comment", "_compressor", "_context", "_debug", "_device", "_encoding",
    "_errors", "_group_name", "_info", "_instances", "_lock", "_mode", "_settings", "_version",
    "buf", "buffer", "cache", "cmp", "compress", "dict", "dispatch", "enabled", "file", "handle",
    "mode", "name", "pos", "raw", "reader", "size", "writer",
})  # fmt: skip
