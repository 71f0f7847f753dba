/* Monitors of files and directories. */

/* Watches what has the path, which is absolute. Returns a slot, or an error. */
int pa_fs_watch(pa_loop *loop, const char *path);
/* To be called at a PA_FS_CHANGED with data -1, with its value, before the
 * callback. Sees to it that what has the path now is watched, or waited for if
 * nothing has. Returns what to report, of enum uv_fs_event; 0: nothing; or an
 * error, after which nothing is watched. */
int pa_fs_look(pa_loop *loop, int slot, int events);
/* The names of the events of the last pa_run, each of which ends with a zero;
 * to be asked for at each event. */
const char *pa_text(pa_loop *loop);
