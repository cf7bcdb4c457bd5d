/* unet2d.h: diffusers' UNet2DModel, from its configuration to a graph. */
#ifndef BOOT_UNET2D_H
#define BOOT_UNET2D_H

#include "net/graph.h"

enum { BOOT_MAX_LEVELS = 12 };

typedef enum { BOOT_TIME_POSITIONAL, BOOT_TIME_FOURIER, BOOT_TIME_LEARNED } boot_time_kind;
typedef enum {
    BOOT_CLASS_NONE,
    BOOT_CLASS_TABLE,
    BOOT_CLASS_TIMESTEP,
    BOOT_CLASS_IDENTITY
} boot_class_kind;

/* The meaning of the config keys, resolved: no strings, no "absent means ...". */
typedef struct {
    int64_t in_channels, out_channels;
    bool center_input_sample;
    boot_time_kind time_embedding;
    int64_t time_embedding_dim;  /* T */
    int64_t num_train_timesteps; /* rows of a learned time embedding */
    double freq_shift;
    bool flip_sin_to_cos;
    int levels;
    int64_t channels[BOOT_MAX_LEVELS];
    bool down_attention[BOOT_MAX_LEVELS],
        down_resnet[BOOT_MAX_LEVELS]; /* has attention; resnet-type sampling */
    bool up_attention[BOOT_MAX_LEVELS], up_resnet[BOOT_MAX_LEVELS];
    int64_t layers_per_block;
    bool mid_block, mid_attention;
    int64_t mid_attention_groups; /* 0: that attention has no group norm */
    double mid_block_scale_factor;
    int64_t downsample_padding;
    int act;                    /* boot_act */
    int64_t attention_head_dim; /* channels per head; 0: one head */
    int64_t norm_num_groups;
    double norm_eps;
    bool scale_shift; /* resnet_time_scale_shift */
    boot_class_kind class_embedding;
    int64_t num_class_embeds;
    bool target_embedding;   /* boot's own second time embedding, for the student's target time */
    bool guidance_embedding; /* and one of the guidance scale, for students of a range of them */
} boot_unet2d_config;

/* Adds the network for n images of height x width; returns the output's value (N, out_channels, H,
   W). Input slots: 0 sample (N, in, H, W), 1 timesteps (N), 2 class labels (N) or (N, T), 3 target
   timesteps (N), 4 positions of the guidance scales (N). */
int boot_unet2d_build(boot_graph *graph, const boot_unet2d_config *config, int64_t n,
                      int64_t height, int64_t width);

#endif
