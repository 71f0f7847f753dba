/* Monitors of files and directories. */

/* Watches the file or directory at an absolute path. Returns a slot, or an
 * error. */
int pa_fs_watch(pa_loop *loop, const char *path);
/* With the flags of enum uv_fs_event in a PA_FS_CHANGED with data -1: changes
 * were lost, of any monitor of the loop. */
#define PA_FS_OVERFLOW 4
/* To be called at a PA_FS_CHANGED with data -1, with its value, before the
 * callback. Watches the file that has the path now, or waits for one to appear.
 * Returns the flags of enum uv_fs_event to report; 0: there is nothing to
 * report; or an error, after which nothing is watched. */
int pa_fs_look(pa_loop *loop, int slot, int events);
/* The names of the changed entries of the last pa_run, each with a zero byte at
 * its end. To be called for each record, because the memory may move. */
const char *pa_text(pa_loop *loop);
