/* The C types and functions that rosidl's generated code uses (Jazzy), for machines without ROS headers.
 *
 * The pip runtime has the generators and the libraries but no headers. messages.py lets every
 * rosidl_*, rcutils and action_msgs header that generated code asks for include this one file.
 * Layouts are those of rosidl 4.6, and tests/ros exercises each: messages, services with
 * introspection events, actions, type descriptions.
 */
#ifndef SPARSEOCCVLA_ROSIDL_TYPES_H
#define SPARSEOCCVLA_ROSIDL_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ROSIDL_GENERATOR_C_EXPORT __attribute__((visibility("default")))
#define ROSIDL_GENERATOR_C_IMPORT
#define ROSIDL_GENERATOR_C_PUBLIC

/* Names of type support functions. Stock builds have two of each: rosidl_typesupport_c, which looks for
 * an implementation at run time, and the implementations. This build has one implementation, so the
 * first argument is dropped and both names are one function. rmw_cyclonedds_cpp and
 * rmw_fastrtps_dynamic_cpp work with it; rmw_fastrtps_cpp needs a second implementation. */
#define ROSIDL_PASTE_(function, package, folder, name) \
  rosidl_typesupport_introspection_c__##function##__##package##__##folder##__##name
#define ROSIDL_TYPESUPPORT_INTERFACE__MESSAGE_SYMBOL_NAME(implementation, package, folder, name) \
  ROSIDL_PASTE_(get_message_type_support_handle, package, folder, name)
#define ROSIDL_TYPESUPPORT_INTERFACE__SERVICE_SYMBOL_NAME(implementation, package, folder, name) \
  ROSIDL_PASTE_(get_service_type_support_handle, package, folder, name)
#define ROSIDL_TYPESUPPORT_INTERFACE__ACTION_SYMBOL_NAME(implementation, package, folder, name) \
  ROSIDL_PASTE_(get_action_type_support_handle, package, folder, name)
#define ROSIDL_TYPESUPPORT_INTERFACE__SERVICE_CREATE_EVENT_MESSAGE_SYMBOL_NAME( \
    implementation, package, folder, name) \
  ROSIDL_PASTE_(create_service_event_message, package, folder, name)
#define ROSIDL_TYPESUPPORT_INTERFACE__SERVICE_DESTROY_EVENT_MESSAGE_SYMBOL_NAME( \
    implementation, package, folder, name) \
  ROSIDL_PASTE_(destroy_service_event_message, package, folder, name)
#define ROSIDL_GET_MSG_TYPE_SUPPORT(package, folder, name) \
  ROSIDL_TYPESUPPORT_INTERFACE__MESSAGE_SYMBOL_NAME(rosidl_typesupport_c, package, folder, name)()
#define ROSIDL_GET_SRV_TYPE_SUPPORT(package, folder, name) \
  ROSIDL_TYPESUPPORT_INTERFACE__SERVICE_SYMBOL_NAME(rosidl_typesupport_c, package, folder, name)()

/* Memory. */

typedef struct rcutils_allocator_s
{
  void * (*allocate)(size_t size, void * state);
  void (*deallocate)(void * pointer, void * state);
  void * (*reallocate)(void * pointer, size_t size, void * state);
  void * (*zero_allocate)(size_t count, size_t size, void * state);
  void * state;
} rcutils_allocator_t;

rcutils_allocator_t rcutils_get_default_allocator(void);

enum rosidl_runtime_c__message_initialization
{
  ROSIDL_RUNTIME_C_MSG_INIT_ALL,
  ROSIDL_RUNTIME_C_MSG_INIT_SKIP,
  ROSIDL_RUNTIME_C_MSG_INIT_ZERO,
  ROSIDL_RUNTIME_C_MSG_INIT_DEFAULTS_ONLY
};

/* Strings and sequences of primitives: a pointer, how many are valid, how many are allocated. */

#define ROSIDL_SEQUENCE_STRUCT(name, type) \
  typedef struct name \
  { \
    type * data; \
    size_t size; \
    size_t capacity; \
  } name;

#define ROSIDL_SEQUENCE(prefix, type) \
  ROSIDL_SEQUENCE_STRUCT(prefix##__Sequence, type) \
  bool prefix##__Sequence__init(prefix##__Sequence * sequence, size_t size); \
  void prefix##__Sequence__fini(prefix##__Sequence * sequence); \
  bool prefix##__Sequence__are_equal(const prefix##__Sequence * a, const prefix##__Sequence * b); \
  bool prefix##__Sequence__copy(const prefix##__Sequence * input, prefix##__Sequence * output);

#define ROSIDL_STRING(name, type) \
  ROSIDL_SEQUENCE_STRUCT(name, type) \
  bool name##__init(name * string); \
  void name##__fini(name * string); \
  bool name##__are_equal(const name * a, const name * b); \
  bool name##__copy(const name * input, name * output); \
  ROSIDL_SEQUENCE(name, name)

ROSIDL_STRING(rosidl_runtime_c__String, char)
ROSIDL_STRING(rosidl_runtime_c__U16String, uint_least16_t)
bool rosidl_runtime_c__String__assign(rosidl_runtime_c__String * string, const char * value);

ROSIDL_SEQUENCE(rosidl_runtime_c__float, float)
ROSIDL_SEQUENCE(rosidl_runtime_c__double, double)
ROSIDL_SEQUENCE(rosidl_runtime_c__char, signed char)
ROSIDL_SEQUENCE(rosidl_runtime_c__boolean, bool)
ROSIDL_SEQUENCE(rosidl_runtime_c__octet, uint8_t)
ROSIDL_SEQUENCE(rosidl_runtime_c__uint8, uint8_t)
ROSIDL_SEQUENCE(rosidl_runtime_c__int8, int8_t)
ROSIDL_SEQUENCE(rosidl_runtime_c__uint16, uint16_t)
ROSIDL_SEQUENCE(rosidl_runtime_c__int16, int16_t)
ROSIDL_SEQUENCE(rosidl_runtime_c__uint32, uint32_t)
ROSIDL_SEQUENCE(rosidl_runtime_c__int32, int32_t)
ROSIDL_SEQUENCE(rosidl_runtime_c__uint64, uint64_t)
ROSIDL_SEQUENCE(rosidl_runtime_c__int64, int64_t)

/* Type hashes and descriptions (REP-2011). */

typedef struct rosidl_type_hash_s
{
  uint8_t version;
  uint8_t value[32];
} rosidl_type_hash_t;

/* Numbers of type_description_interfaces/msg/FieldType. */
#define ROSIDL_FIELD_TYPE(name, number) \
  rosidl_runtime_c__type_description__FieldType__FIELD_TYPE_##name = number, \
  rosidl_runtime_c__type_description__FieldType__FIELD_TYPE_##name##_ARRAY = number + 48, \
  rosidl_runtime_c__type_description__FieldType__FIELD_TYPE_##name##_BOUNDED_SEQUENCE = number + 96, \
  rosidl_runtime_c__type_description__FieldType__FIELD_TYPE_##name##_UNBOUNDED_SEQUENCE = number + 144,

enum
{
  ROSIDL_FIELD_TYPE(NESTED_TYPE, 1)
  ROSIDL_FIELD_TYPE(INT8, 2)
  ROSIDL_FIELD_TYPE(UINT8, 3)
  ROSIDL_FIELD_TYPE(INT16, 4)
  ROSIDL_FIELD_TYPE(UINT16, 5)
  ROSIDL_FIELD_TYPE(INT32, 6)
  ROSIDL_FIELD_TYPE(UINT32, 7)
  ROSIDL_FIELD_TYPE(INT64, 8)
  ROSIDL_FIELD_TYPE(UINT64, 9)
  ROSIDL_FIELD_TYPE(FLOAT, 10)
  ROSIDL_FIELD_TYPE(DOUBLE, 11)
  ROSIDL_FIELD_TYPE(CHAR, 13)
  ROSIDL_FIELD_TYPE(BOOLEAN, 15)
  ROSIDL_FIELD_TYPE(BYTE, 16)
  ROSIDL_FIELD_TYPE(STRING, 17)
  ROSIDL_FIELD_TYPE(WSTRING, 18)
  ROSIDL_FIELD_TYPE(BOUNDED_STRING, 21)
  ROSIDL_FIELD_TYPE(BOUNDED_WSTRING, 22)
};

typedef struct rosidl_runtime_c__type_description__FieldType
{
  uint8_t type_id;
  uint64_t capacity;
  uint64_t string_capacity;
  rosidl_runtime_c__String nested_type_name;
} rosidl_runtime_c__type_description__FieldType;

typedef struct rosidl_runtime_c__type_description__Field
{
  rosidl_runtime_c__String name;
  rosidl_runtime_c__type_description__FieldType type;
  rosidl_runtime_c__String default_value;
} rosidl_runtime_c__type_description__Field;
ROSIDL_SEQUENCE_STRUCT(
  rosidl_runtime_c__type_description__Field__Sequence, rosidl_runtime_c__type_description__Field)

typedef struct rosidl_runtime_c__type_description__IndividualTypeDescription
{
  rosidl_runtime_c__String type_name;
  rosidl_runtime_c__type_description__Field__Sequence fields;
} rosidl_runtime_c__type_description__IndividualTypeDescription;
ROSIDL_SEQUENCE_STRUCT(
  rosidl_runtime_c__type_description__IndividualTypeDescription__Sequence,
  rosidl_runtime_c__type_description__IndividualTypeDescription)

typedef struct rosidl_runtime_c__type_description__TypeDescription
{
  rosidl_runtime_c__type_description__IndividualTypeDescription type_description;
  rosidl_runtime_c__type_description__IndividualTypeDescription__Sequence referenced_type_descriptions;
} rosidl_runtime_c__type_description__TypeDescription;

typedef struct rosidl_runtime_c__type_description__TypeSource
{
  rosidl_runtime_c__String type_name;
  rosidl_runtime_c__String encoding;
  rosidl_runtime_c__String raw_file_contents;
} rosidl_runtime_c__type_description__TypeSource;
ROSIDL_SEQUENCE_STRUCT(
  rosidl_runtime_c__type_description__TypeSource__Sequence,
  rosidl_runtime_c__type_description__TypeSource)

/* Type supports: what rmw gets for a message, a service and an action. */

#define ROSIDL_SELF_DESCRIPTION(type_support) \
  const rosidl_type_hash_t * (*get_type_hash_func)(const type_support *); \
  const rosidl_runtime_c__type_description__TypeDescription * (*get_type_description_func)( \
    const type_support *); \
  const rosidl_runtime_c__type_description__TypeSource__Sequence * (*get_type_description_sources_func)( \
    const type_support *);

typedef struct rosidl_message_type_support_t rosidl_message_type_support_t;
struct rosidl_message_type_support_t
{
  const char * typesupport_identifier;
  const void * data;
  const rosidl_message_type_support_t * (*func)(const rosidl_message_type_support_t *, const char *);
  ROSIDL_SELF_DESCRIPTION(rosidl_message_type_support_t)
};
const rosidl_message_type_support_t * get_message_typesupport_handle_function(
  const rosidl_message_type_support_t * handle, const char * identifier);

typedef struct rosidl_service_introspection_info_s
{
  uint8_t event_type;
  int32_t stamp_sec;
  uint32_t stamp_nanosec;
  uint8_t client_gid[16];
  int64_t sequence_number;
} rosidl_service_introspection_info_t;

typedef struct rosidl_service_type_support_t rosidl_service_type_support_t;
struct rosidl_service_type_support_t
{
  const char * typesupport_identifier;
  const void * data;
  const rosidl_service_type_support_t * (*func)(const rosidl_service_type_support_t *, const char *);
  const rosidl_message_type_support_t * request_typesupport;
  const rosidl_message_type_support_t * response_typesupport;
  const rosidl_message_type_support_t * event_typesupport;
  void * (*event_message_create_handle_function)(
    const rosidl_service_introspection_info_t * info, rcutils_allocator_t * allocator,
    const void * request, const void * response);
  bool (*event_message_destroy_handle_function)(void * event, rcutils_allocator_t * allocator);
  ROSIDL_SELF_DESCRIPTION(rosidl_service_type_support_t)
};
const rosidl_service_type_support_t * get_service_typesupport_handle_function(
  const rosidl_service_type_support_t * handle, const char * identifier);

typedef struct rosidl_action_type_support_s rosidl_action_type_support_t;
struct rosidl_action_type_support_s
{
  const rosidl_service_type_support_t * goal_service_type_support;
  const rosidl_service_type_support_t * result_service_type_support;
  const rosidl_service_type_support_t * cancel_service_type_support;
  const rosidl_message_type_support_t * feedback_message_type_support;
  const rosidl_message_type_support_t * status_message_type_support;
  ROSIDL_SELF_DESCRIPTION(rosidl_action_type_support_t)
};

/* rosidl_typesupport_introspection_c: the tables from which rmw serializes. */

extern const char * rosidl_typesupport_introspection_c__identifier;

enum
{
  rosidl_typesupport_introspection_c__ROS_TYPE_FLOAT = 1,
  rosidl_typesupport_introspection_c__ROS_TYPE_DOUBLE,
  rosidl_typesupport_introspection_c__ROS_TYPE_LONG_DOUBLE,
  rosidl_typesupport_introspection_c__ROS_TYPE_CHAR,
  rosidl_typesupport_introspection_c__ROS_TYPE_WCHAR,
  rosidl_typesupport_introspection_c__ROS_TYPE_BOOLEAN,
  rosidl_typesupport_introspection_c__ROS_TYPE_OCTET,
  rosidl_typesupport_introspection_c__ROS_TYPE_UINT8,
  rosidl_typesupport_introspection_c__ROS_TYPE_INT8,
  rosidl_typesupport_introspection_c__ROS_TYPE_UINT16,
  rosidl_typesupport_introspection_c__ROS_TYPE_INT16,
  rosidl_typesupport_introspection_c__ROS_TYPE_UINT32,
  rosidl_typesupport_introspection_c__ROS_TYPE_INT32,
  rosidl_typesupport_introspection_c__ROS_TYPE_UINT64,
  rosidl_typesupport_introspection_c__ROS_TYPE_INT64,
  rosidl_typesupport_introspection_c__ROS_TYPE_STRING,
  rosidl_typesupport_introspection_c__ROS_TYPE_WSTRING,
  rosidl_typesupport_introspection_c__ROS_TYPE_MESSAGE
};

typedef struct rosidl_typesupport_introspection_c__MessageMember
{
  const char * name_;
  uint8_t type_id_;
  size_t string_upper_bound_;
  const rosidl_message_type_support_t * members_;
  bool is_key_;
  bool is_array_;
  size_t array_size_;
  bool is_upper_bound_;
  uint32_t offset_;
  const void * default_value_;
  size_t (*size_function)(const void * member);
  const void * (*get_const_function)(const void * member, size_t index);
  void * (*get_function)(void * member, size_t index);
  void (*fetch_function)(const void * member, size_t index, void * value);
  void (*assign_function)(void * member, size_t index, const void * value);
  bool (*resize_function)(void * member, size_t size);
} rosidl_typesupport_introspection_c__MessageMember;

typedef struct rosidl_typesupport_introspection_c__MessageMembers
{
  const char * message_namespace_;
  const char * message_name_;
  uint32_t member_count_;
  size_t size_of_;
  bool has_any_key_member_;
  const rosidl_typesupport_introspection_c__MessageMember * members_;
  void (*init_function)(void * message, enum rosidl_runtime_c__message_initialization initialization);
  void (*fini_function)(void * message);
} rosidl_typesupport_introspection_c__MessageMembers;

typedef struct rosidl_typesupport_introspection_c__ServiceMembers
{
  const char * service_namespace_;
  const char * service_name_;
  const rosidl_typesupport_introspection_c__MessageMembers * request_members_;
  const rosidl_typesupport_introspection_c__MessageMembers * response_members_;
  const rosidl_typesupport_introspection_c__MessageMembers * event_members_;
} rosidl_typesupport_introspection_c__ServiceMembers;

#endif
