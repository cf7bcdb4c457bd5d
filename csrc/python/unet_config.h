/* unet_config.h: reading a UNet2DModel config from Python. */
#ifndef BOOT_PY_UNET_CONFIG_H
#define BOOT_PY_UNET_CONFIG_H

#include "net/unet2d.h"
#include "python/glue.h"

/* 0, or -1 with an exception that names the key. */
int boot_py_read_config(PyObject *config, boot_unet2d_config *c);

#endif
