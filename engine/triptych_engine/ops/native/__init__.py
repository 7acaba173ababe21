"""The optional kernel of the CPU: attention of single queries over paged KV, in one C++ file beside this one."""
